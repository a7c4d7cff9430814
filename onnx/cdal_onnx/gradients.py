"""Gradients of the operators of the domain `cdal`, for ONNX Runtime's gradient builder.

The builder differentiates a graph node by node. For an operator of the domain `cdal` it puts in the nodes that
`GRADIENTS` names: operators of the same domain, each again defined by a function of standard ONNX operators, so that a
runtime without kernels for them runs the training graph as well.
"""

from __future__ import annotations

import json

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .fused import DOMAIN, _attribute, _constant, _function, functions

# Of each operator, the one that gives its gradient: I(i) is an input of the operator, GI(i) the gradient by it, GO(i) that
# by an output. It is one node, since the builder drops gradients of several of which some are not asked for.
GRADIENTS: dict[str, tuple[str, list[str], list[str]]] = {
    "GroupNorm": ("GroupNormGrad", ["GO(0)", "I(0)", "I(1)", "I(2)"], ["GI(0)", "GI(1)", "GI(2)"]),
    "GroupNormSiLU": ("GroupNormSiLUGrad", ["GO(0)", "I(0)", "I(1)", "I(2)"], ["GI(0)", "GI(1)", "GI(2)"]),
    "OffsetGroupNormSiLU": ("OffsetGroupNormSiLUGrad", ["GO(0)", "I(0)", "I(1)", "I(2)", "I(3)"],
                            ["GI(0)", "GI(1)", "GI(2)", "GI(3)"]),
    "FirUp": ("FirDown", ["GO(0)"], ["GI(0)"]),
    "FirDown": ("FirUp", ["GO(0)"], ["GI(0)"]),
    "LeakyReLU": ("LeakyReLUGrad", ["GO(0)", "I(0)"], ["GI(0)"]),
    # Linear in its first input; it only chooses by its second, which `CONSTANT` names.
    "LeakyReLUGrad": ("LeakyReLUGrad", ["GO(0)", "I(1)"], ["GI(0)"]),
}
# What `complete` puts in the place of some of them: operators, and which of the inputs and outputs are theirs.
PARTS: dict[str, list[tuple[str, list[int], list[int]]]] = {}
for _side in ("1x1", "3x3"):
    GRADIENTS |= {
        f"Conv{_side}": (f"Conv{_side}Grad", ["GO(0)", "I(0)", "I(1)"], ["GI(0)", "GI(1)", "GI(2)"]),
        f"Conv{_side}Linear": (f"Conv{_side}LinearGrad", ["GO(0)", "I(0)", "I(1)"], ["GI(0)", "GI(1)"]),
        f"Conv{_side}Mean": (f"Conv{_side}MeanGrad", ["GO(0)", "I(0)", "I(1)"], ["GI(0)", "GI(1)", "GI(2)", "GI(3)"]),
        f"Conv{_side}InputGrad": (f"Conv{_side}InputGradGrad", ["GO(0)", "I(0)", "I(1)"], ["GI(0)", "GI(1)"]),
    }
    PARTS |= {
        f"Conv{_side}Grad": [(f"Conv{_side}InputGrad", [0, 2], [0]), (f"Conv{_side}WeightGrad", [0, 1], [1, 2])],
        f"Conv{_side}MeanGrad": [(f"Conv{_side}InputGrad", [0, 2], [0]), (f"Conv{_side}WeightGrad", [0, 1], [1, 2])],
        f"Conv{_side}LinearGrad": [(f"Conv{_side}InputGrad", [0, 2], [0]), (f"Conv{_side}WeightGrad", [0, 1], [1, 2])],
        f"Conv{_side}InputGradGrad": [(f"Conv{_side}Linear", [0, 2], [0]), (f"Conv{_side}WeightGrad", [1, 0], [1, 2])],
    }
# Inputs by which there is no gradient.
CONSTANT = {"LeakyReLUGrad": {1}}
# Attributes that `complete` copies from an operator to its gradient; the builder is given these in their stead.
ATTRIBUTES = {"groups": (1, "int"), "epsilon": (1.0, "float"), "taps": ([0] * 4, "int"), "channels": (1, "int"),
              "alpha": (1.0, "float")}


def register() -> None:
    """Tells the builder of this process."""
    from onnxruntime.capi import _pybind_state as runtime

    with_attributes = {function.name: list(function.attribute) for function in all_functions(17)}
    for operator, (kind, inputs, outputs) in GRADIENTS.items():
        definition = runtime.GradientNodeDefinition()
        definition.op_type, definition.domain, definition.inputs, definition.outputs = kind, DOMAIN, inputs, outputs
        attributes = []
        for name in with_attributes[kind]:
            value, dtype = ATTRIBUTES[name]
            attribute = runtime.GradientNodeAttributeDefinition()
            attribute.name, attribute.dtype, attribute.is_tensor = name, dtype, False
            attribute.value_json = json.dumps(value)
            attributes.append(attribute)
        definition.attributes = attributes
        runtime.register_gradient_definition(f"{DOMAIN}::{operator}", [definition])
    for operator, inputs in CONSTANT.items():
        runtime.register_custom_stop_gradient_edges(f"{DOMAIN}::{operator}", inputs)


def complete(model: onnx.ModelProto) -> None:
    """Gives the gradients in a differentiated model the attributes of their operators, divides those of `PARTS`, and drops
    functions that nobody calls."""
    named = {node.name: node for node in model.graph.node if node.name}
    nodes = []
    for node in model.graph.node:
        operator = named.get(node.name.rsplit("_Grad/", 1)[0]) if node.domain == DOMAIN and "_Grad/" in node.name else None
        if operator is not None:
            del node.attribute[:]
            node.attribute.extend(operator.attribute)
        nodes += _parts(node) if node.domain == DOMAIN and node.op_type in PARTS else [node]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    called = {node.op_type for node in nodes if node.domain == DOMAIN}
    kept = [function for function in model.functions if function.name in called]
    del model.functions[:]
    model.functions.extend(kept)


def _parts(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Those of which an output is asked for."""
    found, given = [], list(node.input)
    if node.op_type.endswith("MeanGrad"):
        # The gradient by the residual is what all the others are made of.
        name = f"{node.name}/scaled"
        given[0] = node.output[3] if len(node.output) > 3 and node.output[3] else name
        factor = numpy_helper.from_array(np.float32(np.sqrt(0.5)), f"{name}/factor")
        found = [helper.make_node("Constant", [], [f"{name}/half_power"], value=factor, name=f"{name}/half_power"),
                 helper.make_node("Mul", [node.input[0], f"{name}/half_power"], [given[0]], name=name)]
    for kind, inputs, outputs in PARTS[node.op_type]:
        wanted = [node.output[index] if index < len(node.output) else "" for index in outputs]
        if any(wanted):
            found.append(helper.make_node(kind, [given[index] for index in inputs], wanted, name=f"{node.name}/{kind}",
                                          domain=DOMAIN))
    return found


def differentiable(operators: set[str]) -> set[str]:
    """These operators and all that the builder may put in for their gradients."""
    found: set[str] = set()
    while operators:
        found |= operators
        more = {GRADIENTS[operator][0] for operator in operators if operator in GRADIENTS}
        more |= {kind for operator in operators for kind, *_ in PARTS.get(operator, [])}
        operators = more - found
    return found


def all_functions(opset: int) -> list[onnx.FunctionProto]:
    own = [
        *(_linear(side, opset) for side in (1, 3)),
        *(_by_input(side, opset) for side in (1, 3)),
        *(_by_weight(side, opset) for side in (1, 3)),
        *(_gradient(side, opset, bias) for side in (1, 3) for bias in (True, False)),
        *(_gradient_of_mean(side, opset) for side in (1, 3)),
        *(_gradient_of_input_gradient(side, opset) for side in (1, 3)),
        _group_norm("GroupNormGrad", opset),
        _group_norm("GroupNormSiLUGrad", opset, silu=True),
        _group_norm("OffsetGroupNormSiLUGrad", opset, offset=True, silu=True),
        _leaky(opset), _leaky_gradient(opset),
    ]
    return functions(opset) + own


def _linear(side: int, opset: int) -> onnx.FunctionProto:
    node = helper.make_node("Conv", ["X", "W"], ["Y"], kernel_shape=[side] * 2, pads=[side // 2] * 4)
    return _function(f"Conv{side}x{side}Linear", ["X", "W"], [node], [], opset, f"Conv{side}x{side} without a bias.")


def _transposed(side: int, dy: str, w: str, dx: str) -> onnx.NodeProto:
    return helper.make_node("ConvTranspose", [dy, w], [dx], kernel_shape=[side] * 2, pads=[side // 2] * 4)


def _by_input(side: int, opset: int) -> onnx.FunctionProto:
    return _function(f"Conv{side}x{side}InputGrad", ["dY", "W"], [_transposed(side, "dY", "W", "dX")], [], opset,
                     f"Gradient [N, C, H, W] of Conv{side}x{side} by its input, from dY [N, K, H, W].", ("dX",))


def _weight_nodes(side: int, dy: str = "dY") -> list[onnx.NodeProto]:
    """dW and dB of dy and X: a product of matrices (outputs x pixels, pixels x inputs) for each tap of the filters."""
    node, edge = helper.make_node, side // 2
    nodes = [
        _constant("pads", np.array([0, 0, edge, edge, 0, 0, edge, edge])),
        _constant("flat", np.array([0, -1])), _constant("last", np.array([2])), _constant("within", np.array([2, 3])),
        _constant("shape", np.array([0, 0, side, side])), _constant("but_channels", np.array([0, 2, 3])),
        node("Transpose", [dy], ["outputs"], perm=[1, 0, 2, 3]),
        node("Reshape", ["outputs", "flat"], ["rows"]),
        node("Shape", [dy], ["size"], start=2, end=4),
        node("Pad", ["X", "pads"], ["padded"]),
        node("Transpose", ["padded"], ["inputs"], perm=[1, 0, 2, 3]),
    ]
    taps = []
    for tap in range(side**2):
        nodes += [
            _constant(f"start{tap}", np.array([tap // side, tap % side])),
            node("Add", ["size", f"start{tap}"], [f"end{tap}"]),
            node("Slice", ["inputs", f"start{tap}", f"end{tap}", "within"], [f"seen{tap}"]),
            node("Reshape", [f"seen{tap}", "flat"], [f"lines{tap}"]),
            node("Transpose", [f"lines{tap}"], [f"columns{tap}"], perm=[1, 0]),
            node("MatMul", ["rows", f"columns{tap}"], [f"product{tap}"]),
            node("Unsqueeze", [f"product{tap}", "last"], [f"tap{tap}"]),
        ]
        taps.append(f"tap{tap}")
    nodes += [node("Concat", taps, ["taps"], axis=2), node("Reshape", ["taps", "shape"], ["dW"]),
              node("ReduceSum", [dy, "but_channels"], ["dB"], keepdims=0)]
    return nodes


def _by_weight(side: int, opset: int) -> onnx.FunctionProto:
    return _function(f"Conv{side}x{side}WeightGrad", ["dY", "X"], _weight_nodes(side), [], opset,
                     f"Gradients [K, C, {side}, {side}] and [K] of Conv{side}x{side} by its weights and bias, from "
                     "dY [N, K, H, W] and X [N, C, H, W].", ("dW", "dB"))


def _gradient(side: int, opset: int, bias: bool) -> onnx.FunctionProto:
    name = f"Conv{side}x{side}{'' if bias else 'Linear'}"
    nodes = [_transposed(side, "dY", "W", "dX"), *_weight_nodes(side)]
    return _function(f"{name}Grad", ["dY", "X", "W"], nodes, [], opset, f"Gradients of {name} by all of its inputs.",
                     ("dX", "dW", "dB") if bias else ("dX", "dW"))


def _gradient_of_mean(side: int, opset: int) -> onnx.FunctionProto:
    nodes = [_constant("half_power", np.float32(np.sqrt(0.5))), helper.make_node("Mul", ["dY", "half_power"], ["dR"]),
             _transposed(side, "dR", "W", "dX"), *_weight_nodes(side, "dR")]
    return _function(f"Conv{side}x{side}MeanGrad", ["dY", "X", "W"], nodes, [], opset,
                     f"Gradients of Conv{side}x{side}Mean by all of its inputs.", ("dX", "dW", "dB", "dR"))


def _gradient_of_input_gradient(side: int, opset: int) -> onnx.FunctionProto:
    """<X, InputGrad(dY, W)> is <Conv(X, W), dY>."""
    convolution = helper.make_node("Conv", ["X", "W"], ["by_dY"], kernel_shape=[side] * 2, pads=[side // 2] * 4)
    return _function(f"Conv{side}x{side}InputGradGrad", ["X", "dY", "W"], [convolution, *_weight_nodes(side)], [], opset,
                     f"Gradients of Conv{side}x{side}InputGrad by its inputs, where X is that by its output.", ("by_dY", "dW"))


def _group_norm(name: str, opset: int, offset: bool = False, silu: bool = False) -> onnx.FunctionProto:
    """With u = X + offset, x̂ = (u - mean)/deviation, v = scale·x̂ + shift and dv the gradient by v, that by u is
    (scale·dv - mean(scale·dv) - x̂·mean(scale·dv·x̂))/deviation, with means over the group."""
    node = helper.make_node
    moved = "moved" if offset else "X"
    move = [node("Unsqueeze", ["offset", "axes"], ["offset_map"]), node("Add", ["X", "offset_map"], ["moved"])]
    activate = [
        node("Mul", ["normal", "scale_map"], ["scaled"]), node("Add", ["scaled", "shift_map"], ["v"]),
        node("Sigmoid", ["v"], ["gate"]),
        node("Sub", ["one", "gate"], ["closed"]), node("Mul", ["v", "closed"], ["turn"]), node("Add", ["turn", "one"], ["bend"]),
        node("Mul", ["gate", "bend"], ["slope"]), node("Mul", ["dY", "slope"], ["dv"]),
    ]
    nodes = [
        _constant("axes", np.array([2, 3])), _constant("axis", np.array([0])), _constant("one", np.float32([1])),
        _constant("keep", np.array([0])), _constant("rest", np.array([-1])),
        _attribute("groups", "value_int", "groups"), _attribute("epsilon", "value_float", "epsilon"),
        node("Unsqueeze", ["groups", "axis"], ["count"]), node("Concat", ["keep", "count", "rest"], ["grouped"], axis=0),
        *(move if offset else []),
        node("Shape", [moved], ["shape"]), node("Reshape", [moved, "grouped"], ["flat"]),
        node("ReduceMean", ["flat"], ["mean"], axes=[2], keepdims=1), node("Sub", ["flat", "mean"], ["centred"]),
        node("Mul", ["centred", "centred"], ["squares"]), node("ReduceMean", ["squares"], ["variance"], axes=[2], keepdims=1),
        node("Add", ["variance", "epsilon"], ["raised"]), node("Sqrt", ["raised"], ["deviation"]),
        node("Div", ["centred", "deviation"], ["flat_normal"]), node("Reshape", ["flat_normal", "shape"], ["normal"]),
        node("Unsqueeze", ["scale", "axes"], ["scale_map"]), node("Unsqueeze", ["shift", "axes"], ["shift_map"]),
        *(activate if silu else [node("Identity", ["dY"], ["dv"])]),
        node("Mul", ["dv", "scale_map"], ["weighed"]), node("Reshape", ["weighed", "grouped"], ["flat_weighed"]),
        node("ReduceMean", ["flat_weighed"], ["mean_weighed"], axes=[2], keepdims=1),
        node("Mul", ["flat_weighed", "flat_normal"], ["products"]),
        node("ReduceMean", ["products"], ["mean_product"], axes=[2], keepdims=1),
        node("Mul", ["flat_normal", "mean_product"], ["along"]),
        node("Sub", ["flat_weighed", "mean_weighed"], ["level"]), node("Sub", ["level", "along"], ["rest_weighed"]),
        node("Div", ["rest_weighed", "deviation"], ["flat_dX"]), node("Reshape", ["flat_dX", "shape"], ["dX"]),
        node("Mul", ["dv", "normal"], ["dv_normal"]),
        *_summed("dv_normal", "scale", "dscale"), *_summed("dv", "shift", "dshift"),
        *(_summed("dX", "offset", "doffset") if offset else []),
    ]
    more = ["offset"] if offset else []
    outputs = ("dX", "dscale", "dshift", *(["doffset"] if offset else []))
    return _function(name, ["dY", "X", "scale", "shift", *more], nodes, ["groups", "epsilon"], opset,
                     f"Gradients of {name.removesuffix('Grad')} by its inputs, from dY [N, C, H, W].", outputs)


def _summed(x: str, like: str, y: str) -> list[onnx.NodeProto]:
    """x [N, C, H, W] summed to the shape of `like`, which is [1 or N, C]."""
    node = helper.make_node
    return [
        node("ReduceSum", [x, "axes"], [f"{y}_all"], keepdims=0),
        # [N, 1, C], or with one row for all images [1, N, C].
        node("Shape", [like], [f"{y}_rows"], start=0, end=1), node("Shape", [like], [f"{y}_columns"], start=1, end=2),
        node("Concat", [f"{y}_rows", "rest", f"{y}_columns"], [f"{y}_split"], axis=0),
        node("Reshape", [f"{y}_all", f"{y}_split"], [f"{y}_parts"]),
        _constant(f"{y}_middle", np.array([1])),
        node("ReduceSum", [f"{y}_parts", f"{y}_middle"], [y], keepdims=0),
    ]


def _leaky(opset: int) -> onnx.FunctionProto:
    node = helper.make_node
    return _function("LeakyReLU", ["X"], [
        _attribute("alpha", "value_float", "alpha"), _constant("zero", np.float32(0)),
        node("Greater", ["X", "zero"], ["is_above"]), node("Mul", ["X", "alpha"], ["weaker"]),
        node("Where", ["is_above", "X", "weaker"], ["Y"]),
    ], ["alpha"], opset, "X, or where it is not above 0 alpha times X.")


def _leaky_gradient(opset: int) -> onnx.FunctionProto:
    node = helper.make_node
    return _function("LeakyReLUGrad", ["dY", "X"], [
        _attribute("alpha", "value_float", "alpha"), _constant("zero", np.float32(0)), _constant("axis", np.array([0])),
        node("Shape", ["dY"], ["count"], start=0, end=1), node("Slice", ["X", "axis", "count", "axis"], ["first"]),
        node("Greater", ["first", "zero"], ["is_above"]), node("Mul", ["dY", "alpha"], ["weaker"]),
        node("Where", ["is_above", "dY", "weaker"], ["dX"]),
    ], ["alpha"], opset, "dY [M, ...], or where X [N, ...] is not above 0 alpha times dY; M <= N samples of X count.", ("dX",))

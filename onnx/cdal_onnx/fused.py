"""The operators of the domain `cdal`, each defined as a function of standard ONNX operators.

A model carries the definitions of those that it uses, so every runtime can run it; kernels for the CPU are in the
engine of `cdal`, which these definitions bind.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

DOMAIN = "cdal"
VERSION = 1


def _constant(name: str, value: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def _attribute(name: str, kind: str, attribute: str) -> onnx.NodeProto:
    """The value that a caller gives to `attribute`, as a tensor; `kind` is value_int, value_floats and the like."""
    node = helper.make_node("Constant", [], [name])
    kinds = {"value_int": onnx.AttributeProto.INT, "value_float": onnx.AttributeProto.FLOAT,
             "value_floats": onnx.AttributeProto.FLOATS}
    node.attribute.append(_reference(kind, attribute, kinds[kind]))
    return node


def _reference(name: str, attribute: str, kind: int) -> onnx.AttributeProto:
    reference = onnx.AttributeProto()
    reference.name, reference.ref_attr_name, reference.type = name, attribute, kind
    return reference


def _function(name: str, inputs: list[str], nodes: list[onnx.NodeProto], attributes: list[str], opset: int,
              doc: str, outputs: tuple[str, ...] = ("Y",)) -> onnx.FunctionProto:
    return helper.make_function(DOMAIN, name, inputs, list(outputs), nodes, [helper.make_opsetid("", opset)], attributes,
                                doc_string=doc)


def _group_norm(name: str, opset: int, offset: bool = False, silu: bool = False) -> onnx.FunctionProto:
    node = helper.make_node
    moved, normalised = "moved" if offset else "X", "V" if silu else "Y"
    move = [node("Unsqueeze", ["offset", "axes"], ["offset_map"]), node("Add", ["X", "offset_map"], ["moved"])]
    activate = [node("Sigmoid", ["V"], ["gate"]), node("Mul", ["V", "gate"], ["Y"])]
    instance = node("InstanceNormalization", ["flat", "ones", "zeros"], ["instance"])
    instance.attribute.append(_reference("epsilon", "epsilon", onnx.AttributeProto.FLOAT))
    nodes = [
        _constant("axes", np.array([2, 3])), _constant("axis", np.array([0])),
        _constant("keep", np.array([0])), _constant("rest", np.array([-1])),
        _constant("one", np.float32([1])), _constant("zero", np.float32([0])),
        _attribute("groups", "value_int", "groups"),
        node("Unsqueeze", ["groups", "axis"], ["count"]),
        node("Concat", ["keep", "count", "rest"], ["grouped"], axis=0),
        node("Expand", ["one", "count"], ["ones"]), node("Expand", ["zero", "count"], ["zeros"]),
        *(move if offset else []),
        node("Shape", [moved], ["shape"]),
        node("Reshape", [moved, "grouped"], ["flat"]),
        instance,
        node("Reshape", ["instance", "shape"], ["normal"]),
        node("Unsqueeze", ["scale", "axes"], ["scale_map"]), node("Unsqueeze", ["shift", "axes"], ["shift_map"]),
        node("Mul", ["normal", "scale_map"], ["scaled"]),
        node("Add", ["scaled", "shift_map"], [normalised]),
        *(activate if silu else []),
    ]
    inputs = ["X", "scale", "shift", *(["offset"] if offset else [])]
    doc = f"GroupNorm of X [N, C, H, W]{' + offset' if offset else ''}, times scale, plus shift{', then SiLU' if silu else ''}"
    return _function(name, inputs, nodes, ["groups", "epsilon"], opset, f"{doc}. What is given a channel is [1 or N, C].")


def convolution(side: int, x: str, weight: str, bias: str, y: str) -> onnx.NodeProto:
    """What keeps the size of the map."""
    return helper.make_node("Conv", [x, weight, bias], [y], kernel_shape=[side] * 2, pads=[side // 2] * 4)


# Side of their filters.
CONVOLUTIONS = {"Conv1x1": 1, "Conv1x1Mean": 1, "Conv3x3": 3, "Conv3x3Mean": 3}


def _convolution(name: str, opset: int) -> onnx.FunctionProto:
    side = CONVOLUTIONS[name]
    doc = f"Convolution of X [N, C, H, W] with W [K, C, {side}, {side}], stride 1, padding {side // 2}, plus B [K]"
    if not name.endswith("Mean"):
        return _function(name, ["X", "W", "B"], [convolution(side, "X", "W", "B", "Y")], [], opset, f"{doc}.")
    nodes = [convolution(side, "X", "W", "B", "convolved"), *residual_mean("R", "convolved", "Y")]
    return _function(name, ["X", "W", "B", "R"], nodes, [], opset, f"{doc}; then (R + it)/√2.")


def residual_mean(a: str, b: str, y: str) -> list[onnx.NodeProto]:
    return [
        _constant(f"{y}_half_power", np.float32(np.sqrt(0.5))),
        helper.make_node("Add", [a, b], [f"{y}_sum"]),
        helper.make_node("Mul", [f"{y}_sum", f"{y}_half_power"], [y]),
    ]


def _fir(name: str, operator: str, opset: int, doc: str) -> onnx.FunctionProto:
    node = helper.make_node
    filtered = node(operator, ["X", "kernel"], ["Y"], kernel_shape=[4, 4], strides=[2, 2], pads=[1, 1, 1, 1])
    filtered.attribute.append(_reference("group", "channels", onnx.AttributeProto.INT))
    return _function(name, ["X"], [
        _attribute("taps", "value_floats", "taps"), _attribute("channels", "value_int", "channels"),
        _constant("column", np.array([4, 1])), _constant("row", np.array([1, 4])),
        _constant("axis", np.array([0])), _constant("sizes", np.array([1, 4, 4])),
        node("Reshape", ["taps", "column"], ["vertical"]), node("Reshape", ["taps", "row"], ["horizontal"]),
        node("MatMul", ["vertical", "horizontal"], ["square"]),
        node("Unsqueeze", ["channels", "axis"], ["count"]),
        node("Concat", ["count", "sizes"], ["shape"], axis=0),
        node("Expand", ["square", "shape"], ["kernel"]),
        filtered,
    ], ["taps", "channels"], opset, doc)


def functions(opset: int) -> list[onnx.FunctionProto]:
    return [
        _group_norm("GroupNorm", opset),
        _group_norm("GroupNormSiLU", opset, silu=True),
        _group_norm("OffsetGroupNormSiLU", opset, offset=True, silu=True),
        *(_convolution(name, opset) for name in CONVOLUTIONS),
        _function("ResidualMean", ["A", "B"], residual_mean("A", "B", "Y"), [], opset,
                  "(A + B)/√2: the rescaled sum of every residual connection."),
        _fir("FirUp", "ConvTranspose", opset, "Zero insertion by 2, then a blur with the four taps along both axes."),
        _fir("FirDown", "Conv", opset, "A blur with the four taps along both axes, of which every second pixel is kept."),
    ]

"""The denoiser in float16, for GPUs: every tensor between its inputs and its output, which stay float32.

The statistics of normalisations and of softmax are float32 inside the providers' own kernels. PixelNorm of the latent is
float32 here too, since its 1e-8 would be zero.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.inliner import inline_local_functions


def fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` computing in float16, in standard operators alone."""
    model = inline_local_functions(model)
    graph = model.graph
    stored = {constant.name: constant for constant in graph.initializer}
    exact = _before_first_layer(graph, "z")

    renamed: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for value in graph.input:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name != "z":
            renamed[value.name] = f"{value.name}:half"
            nodes.append(_cast(value.name, renamed[value.name], TensorProto.FLOAT16))
    for node in graph.node:
        if node.output[0] in exact:
            nodes.append(node)
            continue
        if node.op_type == "Cast" and _target(node) == TensorProto.FLOAT and node.input[0] in stored:
            renamed[node.output[0]] = node.input[0]  # a weight that is stored in half already
            continue
        for position, name in enumerate(node.input):
            if name in exact and name not in renamed:
                renamed[name] = f"{name}:half"
                nodes.append(_cast(name, renamed[name], TensorProto.FLOAT16))
            node.input[position] = renamed.get(name, name)
        if node.op_type == "Cast" and _target(node) == TensorProto.FLOAT:
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("to", TensorProto.FLOAT16))
        if node.op_type == "Constant":
            _halve(node)
        nodes.append(node)
    result = graph.output[0].name
    for node in nodes:
        node.output[:] = [f"{name}:half" if name == result else name for name in node.output]
    nodes.append(_cast(f"{result}:half", result, TensorProto.FLOAT))

    kept = {name for node in nodes if node.output[0] in exact for name in node.input}
    constants = []
    for name, constant in stored.items():
        if name not in kept and constant.data_type == TensorProto.FLOAT:
            constant = numpy_helper.from_array(numpy_helper.to_array(constant).astype(np.float16), name)
        constants.append(constant)
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    onnx.checker.check_model(model, full_check=True)
    return model


def _before_first_layer(graph: onnx.GraphProto, source: str) -> set[str]:
    """What is computed of `source` alone and no layer has seen."""
    found: set[str] = set()
    constants = {constant.name for constant in graph.initializer}
    for node in graph.node:
        own = [name for name in node.input if name not in constants]
        if node.op_type != "Gemm" and own and all(name == source or name in found for name in own):
            found.update(node.output)
    return found


def _cast(source: str, result: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"cast_{result}", to=to)


def _target(node: onnx.NodeProto) -> int:
    return next(attribute.i for attribute in node.attribute if attribute.name == "to")


def _halve(node: onnx.NodeProto) -> None:
    """A constant's value in float16, if it is a float32 one."""
    attribute = node.attribute[0]
    if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
        value = numpy_helper.to_array(attribute.t)
    elif attribute.name == "value_floats":
        value = np.array(attribute.floats)
    else:
        return
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(value.astype(np.float16))))

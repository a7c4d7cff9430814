"""The denoiser in int8: its convolutions between quantised tensors, all else as it is.

Activations are 8 bits wide and unsigned, with one scale each, from the range that calibration saw; weights are signed, with a
scale for each output channel. What stands between two convolutions stays float32, so that any runtime can fuse or run it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from . import fused
from .graph import OPSET

Feed = dict[str, np.ndarray]


def int8(model: onnx.ModelProto, feeds: Iterable[Feed]) -> onnx.ModelProto:
    """`model` with quantised convolutions; `feeds` are inputs like those that it will see."""
    model = _spelt_out(model)
    constants = _constants(model)
    convolutions = [node for node in model.graph.node
                    if node.op_type == "Conv" and node.domain == "" and node.input[1] in constants and _is_dense(node)]
    ranges = _ranges(model, sorted({name for node in convolutions for name in (node.input[0], node.output[0])}), feeds)
    quantised = onnx.ModelProto()
    quantised.CopyFrom(model)
    graph = quantised.graph
    writer = _Writer(constants, ranges)
    chosen = {node.output[0] for node in convolutions}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes.extend(writer.convolution(node) if node.output and node.output[0] in chosen else [node])
    # What only convolutions read is of no use any more, casts of their weights included.
    for _ in range(2):
        read = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
        nodes = [node for node in nodes if read.intersection(node.output)]
    del graph.node[:]
    graph.node.extend(nodes)
    kept = [constant for constant in graph.initializer if constant.name in read]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *writer.constants])
    del graph.value_info[:]
    onnx.checker.check_model(quantised)
    return quantised


def _spelt_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with its convolutions as standard ones, which are what can be quantised."""
    spelt = onnx.ModelProto()
    spelt.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.domain != fused.DOMAIN or node.op_type not in fused.CONVOLUTIONS:
            nodes.append(node)
            continue
        x, weight, bias, *residual = node.input
        y = node.output[0]
        convolved = f"{y}:convolved" if residual else y
        nodes.append(fused.convolution(fused.CONVOLUTIONS[node.op_type], x, weight, bias, convolved))
        nodes[-1].name = node.name
        nodes += [helper.make_node("ResidualMean", [r, convolved], [y], domain=fused.DOMAIN) for r in residual]
    del spelt.graph.node[:]
    spelt.graph.node.extend(nodes)
    del spelt.functions[:]
    used = {node.op_type for node in nodes if node.domain == fused.DOMAIN}
    spelt.functions.extend(function for function in fused.functions(OPSET) if function.name in used)
    return spelt


def _constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Weights by name, those among them that are stored as float16 and cast."""
    constants = {constant.name: numpy_helper.to_array(constant) for constant in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]].astype(np.float32)
    return constants


def _is_dense(node: onnx.NodeProto) -> bool:
    """Depthwise ones are bound by memory: nothing is gained."""
    return all(attribute.name != "group" or attribute.i == 1 for attribute in node.attribute)


def _ranges(model: onnx.ModelProto, names: list[str], feeds: Iterable[Feed]) -> dict[str, tuple[float, float]]:
    """Least and largest value of each tensor, 0 included."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    known = {value.name for value in [*seen.graph.output, *seen.graph.input]}
    seen.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    session = onnxruntime.InferenceSession(seen.SerializeToString())
    ranges = dict.fromkeys(names, (0.0, 0.0))
    asked = [name for name in names if name not in {value.name for value in seen.graph.input}]
    for feed in feeds:
        found = dict(feed) | dict(zip(asked, session.run(asked, feed)))
        ranges = {name: (min(low, float(found[name].min())), max(high, float(found[name].max())))
                  for name, (low, high) in ranges.items()}
    return ranges


class _Writer:
    def __init__(self, constants: dict[str, np.ndarray], ranges: dict[str, tuple[float, float]]) -> None:
        self.known, self.ranges = constants, ranges
        self.constants: list[onnx.TensorProto] = []
        self.inputs: dict[str, tuple[str, np.float32]] = {}

    def convolution(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The convolution with its inputs and its output between quantised tensors."""
        name = node.output[0]
        nodes: list[onnx.NodeProto] = []
        if node.input[0] not in self.inputs:
            nodes.extend(self._through(node.input[0], f"{node.input[0]}:seen"))
        seen, scale = self.inputs[node.input[0]]
        weights = self.known[node.input[1]]
        largest = np.abs(weights).reshape(len(weights), -1).max(axis=1)
        scales = np.where(largest > 0, largest, 1).astype(np.float32) / np.float32(127)
        whole = np.rint(weights / scales[:, None, None, None]).astype(np.int8)
        inputs = [seen, self._dequantised(f"{name}:weights", whole, scales, nodes)]
        if len(node.input) > 2:
            steps = scales * scale
            bias = np.rint(self.known[node.input[2]] / steps).astype(np.int32)
            inputs.append(self._dequantised(f"{name}:bias", bias, steps, nodes))
        raw = f"{name}:exact"
        convolution = helper.make_node("Conv", inputs, [raw], name=node.name)
        convolution.attribute.extend(node.attribute)
        self.ranges[raw] = self.ranges[name]
        return [*nodes, convolution, *self._through(raw, name)]

    def _through(self, tensor: str, result: str) -> list[onnx.NodeProto]:
        """`tensor` rounded to 8 bits and back."""
        low, high = self.ranges[tensor]
        scale = np.float32(max(high - low, 1e-6) / 255)
        zero = np.uint8(np.clip(round(-low / float(scale)), 0, 255))
        parameters = [self._constant(f"{result}:scale", scale), self._constant(f"{result}:zero", zero)]
        self.inputs[tensor] = (result, scale)
        return [helper.make_node("QuantizeLinear", [tensor, *parameters], [f"{result}:8"]),
                helper.make_node("DequantizeLinear", [f"{result}:8", *parameters], [result])]

    def _dequantised(self, name: str, values: np.ndarray, scales: np.ndarray, nodes: list[onnx.NodeProto]) -> str:
        parameters = [self._constant(f"{name}:8", values), self._constant(f"{name}:scale", scales.astype(np.float32)),
                      self._constant(f"{name}:zero", np.zeros(scales.shape, values.dtype))]
        nodes.append(helper.make_node("DequantizeLinear", parameters, [name], axis=0))
        return name

    def _constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

"""Makes a graph compute the same at many times the cost: `slow.py MODEL`, in place."""

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, PRODUCTS = 1500, 8

path = sys.argv[1]
model = onnx.load(path)
graph = model.graph
output = graph.output[0].name
source = next(value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.FLOAT)
for node in graph.node:
    node.output[:] = ["same" if name == output else name for name in node.output]
    node.input[:] = ["same" if name == output else name for name in node.input]


def constant(name: str, value: np.ndarray) -> str:
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name


# It hangs on an input, so that nothing of it can be computed beforehand.
nodes = [
    helper.make_node("ReduceMean", [source], ["mean"], keepdims=0),
    helper.make_node("Expand", ["mean", constant("slow.shape", np.array([SIDE, SIDE], np.int64))], ["product.0"]),
]
for index in range(PRODUCTS):
    nodes.append(helper.make_node("MatMul", [f"product.{index}", "product.0"], [f"raw.{index}"]))
    nodes.append(helper.make_node("Tanh", [f"raw.{index}"], [f"product.{index + 1}"]))
nodes += [
    helper.make_node("ReduceMean", [f"product.{PRODUCTS}"], ["end"], keepdims=0),
    helper.make_node("Mul", ["end", constant("slow.zero", np.array(0, np.float32))], ["nothing"]),
    helper.make_node("Add", ["same", "nothing"], [output]),
]
graph.node.extend(nodes)
onnx.save(model, path)

"""graphs.py PARAMETERS OUT: the denoiser with and without each fused operator, a product of matrices, and the arithmetic they need."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, shape_inference

from cdal_onnx import parameters
from cdal_onnx.generator import condition_graph, denoiser_graph
from cdal_onnx.graph import OPSET, FusedGraph, InferenceGraph
from cdal_onnx.initial import initialiser


def arithmetic(model: onnx.ModelProto) -> int:
    """Multiplications and additions of the convolutions and matrix products of one sample, as the method has them."""
    for inputs in model.graph.input:
        inputs.type.tensor_type.shape.dim[0].dim_value = 1
    graph = shape_inference.infer_shapes(model).graph
    known = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
             for v in [*graph.value_info, *graph.input, *graph.output]}
    known |= {c.name: list(c.dims) for c in graph.initializer}
    total = 0
    for node in graph.node:
        pixels = int(np.prod(known[node.output[0]])) if node.output[0] in known else 0
        if node.op_type == "Conv":
            total += 2 * pixels * int(np.prod(known[node.input[1]][1:]))
        elif node.op_type == "ConvTranspose":  # each output pixel sees a quarter of the taps
            total += 2 * pixels * int(np.prod(known[node.input[1]][2:])) // 4
        elif node.op_type == "MatMul":
            total += 2 * pixels * known[node.input[0]][-1]
        elif node.op_type == "Gemm":
            total += 2 * pixels * known[node.input[0]][-1]
    return total


class NormOnly(InferenceGraph):
    group_norm, functions = FusedGraph.group_norm, FusedGraph.functions


class MeanOnly(InferenceGraph):
    mean, functions = FusedGraph.mean, FusedGraph.functions


class FirOnly(InferenceGraph):
    fir_up, fir_down, functions = FusedGraph.fir_up, FusedGraph.fir_down, FusedGraph.functions


class WithoutConv(FusedGraph):
    conv, pointwise = InferenceGraph.conv, InferenceGraph.pointwise


class WithoutPointwise(FusedGraph):
    def _own_convolution(self, side: int, channels: int) -> None:
        if side == 3:
            super()._own_convolution(side, channels)


DIALECTS = {"standard": InferenceGraph, "norm": NormOnly, "mean": MeanOnly, "fir": FirOnly, "chains": WithoutConv,
            "spatial": WithoutPointwise, "fused": FusedGraph}


def main() -> None:
    p = parameters.load(sys.argv[1])
    out = Path(sys.argv[2])
    state: dict[str, np.ndarray] = {}
    models = {name: denoiser_graph(dialect(state, initialiser(0)), p).model(name) for name, dialect in DIALECTS.items()}
    models |= {
        "condition": condition_graph(FusedGraph(state, initialiser(0)), p).model("condition"),
        "product": helper.make_model(
            helper.make_graph(
                [helper.make_node("MatMul", ["a", "b"], ["y"])], "product",
                [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in "ab"],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None])]),
            opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8),
    }
    for name, model in models.items():
        (out / f"{name}.onnx").write_bytes(model.SerializeToString())
    facts = {"size": p.image_size, "features": p.num_channels_dae, "latent": p.nz, "flops": arithmetic(models["standard"])}
    (out / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()

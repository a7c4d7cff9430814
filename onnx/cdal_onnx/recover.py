"""Weights out of a finished bundle: the folds of export, inverted, and proved by folding again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from .errors import Refused
from .generator import condition_graph, denoiser_graph
from .graph import FusedGraph, InferenceGraph
from .parameters import Parameters

GRAPHS = {"condition.onnx": condition_graph, "denoiser.onnx": denoiser_graph}


def weights(bundle: Path, p: Parameters) -> dict[str, np.ndarray]:
    """Published keys → arrays, so that exporting them again gives the weights of the bundle's graphs bit for bit.

    Refuses a bundle of another network, or one whose weights were folded otherwise than export folds today.
    """
    models = {name: _model(bundle / name) for name in GRAPHS}
    stored = {name: _named(model.graph.initializer) for name, model in models.items()}
    state, fitted = {}, {}
    for name, build in GRAPHS.items():
        halved = any(value.dtype == np.float16 for value in stored[name].values())
        dialect = FusedGraph if models[name].functions else InferenceGraph
        asked = dialect({}, lambda key, shape: _unfold(bundle / name, stored[name], key, shape), half_weights=halved)
        fitted[name] = build(asked, p)
        state |= {key: asked.state[key] for key in asked.used}
    for name, graph in fitted.items():
        again = _named(graph.initializers.values())
        if set(again) != set(stored[name]):
            odd = min(set(again) ^ set(stored[name]))
            raise Refused(f"{bundle / name}: the graph and the parameters do not describe one network, first {odd!r}; "
                          "are these the bundle's own parameters?")
        for key, value in again.items():
            if not np.array_equal(value, stored[name][key]):
                raise Refused(f"{bundle / name}: constant {key!r} is not what export makes of the weights")
    return state


def _model(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except Exception as error:  # onnx raises protobuf's own errors
        raise Refused(f"{path}: not a readable graph: {error}") from error


def _named(constants: Iterable[onnx.TensorProto]) -> dict[str, np.ndarray]:
    """The constants that stand for something; the anonymous ones belong to the graph's spelling, which may change."""
    return {c.name: numpy_helper.to_array(c) for c in constants if not c.name.startswith(("i_", "f_", "c_"))}


def _unfold(path: Path, constants: dict[str, np.ndarray], key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The published tensor behind a constant: NIN weights [in, out] are stored as 1x1 convolutions [out, in, 1, 1]."""
    value = constants.get(key)
    if value is None:
        raise Refused(f"{path}: the graph has no weights {key!r}; are these the bundle's own parameters?")
    value = value.astype(np.float32)  # exact, also from float16
    if key.endswith(".W") and value.ndim == 4:
        value = np.ascontiguousarray(value[:, :, 0, 0].T)
    if value.shape != shape:
        raise Refused(f"{path}: weights {key!r} have shape {list(value.shape)}; the parameters ask for {list(shape)}; "
                      "are these the bundle's own parameters?")
    return value

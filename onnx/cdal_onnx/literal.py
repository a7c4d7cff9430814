"""The literal procedure: the network as the method's description writes it, in one graph.

FIR is zero insertion, padding and convolution at full resolution; the 1x1 skip comes after upsampling; the
condition is encoded in every call. Nobody runs this in production: it is the yardstick of the benchmarks.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .errors import Refused
from .generator import generator_graph
from .graph import InferenceGraph, Map, fir_padding
from .initial import initialiser
from .parameters import Parameters


class LiteralGraph(InferenceGraph):
    """Every operation as written, with nothing rearranged."""

    def _filter(self, x: Map, kernel: np.ndarray, before: int, after: int, gain: float) -> Map:
        pads = self.ints(0, 0, before, before, 0, 0, after, after)
        padded = self.op("Pad", x.name, pads)
        y = self.op("Conv", padded, self._depthwise(x, kernel, gain), group=x.channels,
                    kernel_shape=[len(kernel)] * 2)
        return Map(y, x.channels, x.size + before + after - len(kernel) + 1)

    def fir_down(self, x: Map, kernel: np.ndarray) -> Map:
        blurred = self._filter(x, kernel, *fir_padding(kernel), gain=1.0)
        ends = self.ints(2**31, 2**31)
        y = self.op("Slice", blurred.name, self.ints(0, 0), ends, self.ints(2, 3), self.ints(2, 2))
        return Map(y, x.channels, x.size // 2)

    def fir_up(self, x: Map, kernel: np.ndarray) -> Map:
        apart = self.op("Reshape", x.name, self.ints(0, x.channels, x.size, 1, x.size, 1))
        zeros = self.op("Pad", apart, self.ints(0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1))
        doubled = Map(self.op("Reshape", zeros, self.ints(0, x.channels, 2 * x.size, 2 * x.size)),
                      x.channels, 2 * x.size)
        before, after = fir_padding(kernel)
        return self._filter(doubled, kernel, before + 1, after, gain=4.0)

    def fir_blur(self, x: Map, kernel: np.ndarray) -> Map:
        before, after = fir_padding(kernel)
        return self._filter(x, kernel, before + 1, after + 1, gain=1.0)

    def upsampled_skip(self, x: Map, key: str, channels: int, kernel: np.ndarray) -> Map:
        return self.conv(self.fir_up(x, kernel), key, channels, kernel=1)


def write(parameters: Parameters, state: dict[str, np.ndarray], out: Path) -> None:
    """Writes the unsplit generator to `out`; keys that `state` lacks are drawn."""
    if out.exists():
        raise Refused(f"{out}: already exists")
    graph = generator_graph(LiteralGraph(state, initialiser(0)), parameters)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_suffix(".part")
    scratch.write_bytes(graph.model("cdal_generator_literal").SerializeToString(deterministic=True))
    os.replace(scratch, out)

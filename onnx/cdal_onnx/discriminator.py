"""The time-dependent discriminators D(x_t, t, x_{t+1}) and the spatial attention read from their features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .generator import sinusoid
from .graph import FLOAT, INT64, Graph, Map
from .parameters import Parameters

# (channels in units of ngf, whether the block halves the resolution)
SMALL = ((2, False), (4, True), (8, True), (8, True))
LARGE = ((4, True), (8, True), (8, True), (8, True), (8, True), (8, True))


@dataclass(frozen=True)
class Block:
    """A DownConvBlock as it was applied: its input and what its second LeakyReLU saw."""

    key: str
    x: Map
    middle: Map
    channels: int
    down: bool


@dataclass(frozen=True)
class Spread:
    """The minibatch stddev as it was computed, on [group, N/group, C, H, W]."""

    shape: str
    centred: str
    deviation: str  # [1, N/group, C, H, W]


@dataclass(frozen=True)
class Application:
    """One application of D: what it gave, and what its input gradient is written with."""

    logits: str  # [N, 1]
    start: Map
    blocks: list[Block]
    last: Map  # of the last block, [N, 8·ngf, H, W]
    spread: Spread
    final: Map  # before the last LeakyReLU

    @property
    def features(self) -> list[Map]:
        """[start_conv, block 1, block 2, …]: what the attention is read from."""
        return [block.x for block in self.blocks] + [self.last]


class Discriminator:
    """Adds D's layers to a graph; may be applied several times with shared weights."""

    def __init__(self, graph: Graph, parameters: Parameters):
        self.g = graph
        self.p = parameters
        self.blocks = SMALL if parameters.small_discriminator else LARGE

    def __call__(self, x_t: str, t: str, x_tp1: str) -> Application:
        """D(x_t, t, x_{t+1}); the minibatch stddev sees this batch alone."""
        g, p = self.g, self.p
        pair = Map(g.op("Concat", x_t, x_tp1, axis=1), p.num_channels_disc, p.image_size)
        time = self._time(t)
        h = start = g.conv(pair, "start_conv", 2 * p.ngf, kernel=1)
        blocks = []
        for index, (multiplier, down) in enumerate(self.blocks, start=1):
            block, h = self._block(h, time, f"conv{index}", multiplier * p.ngf, down)
            blocks.append(block)
        spread, appended = self._with_stddev(h)
        final = g.conv(appended, "final_conv", 8 * p.ngf)
        total = g.op("ReduceSum", g.leaky(final).name, g.ints(2, 3), keepdims=0)
        logits = g.linear(total, "end_linear", 8 * p.ngf, 1)
        return Application(logits, start, blocks, h, spread, final)

    def attention(self, features: list[Map]) -> str:
        """Channel mean of features[attn_scale], bilinearly upsampled to the image [N, 1, H, W]."""
        g, size = self.g, self.p.image_size
        chosen = features[self.p.attn_scale]
        mean = Map(g.op("ReduceMean", chosen.name, axes=[1], keepdims=1), 1, chosen.size)
        if chosen.size == size:
            return mean.name
        matrix = bilinear_matrix(chosen.size, size)
        columns = g.op("MatMul", mean.name, g.constant(np.ascontiguousarray(matrix.T)))
        return g.op("MatMul", g.constant(matrix), columns)

    def _time(self, t: str) -> str:
        g, p = self.g, self.p
        table = g.constant(sinusoid(p.num_timesteps, p.t_emb_dim), "discriminator_time_sinusoid")
        h = g.linear(g.op("Gather", table, t, axis=0), "t_embed.main.0", p.t_emb_dim, p.t_emb_dim)
        h = g.linear(g.leaky_vector(h), "t_embed.main.2", p.t_emb_dim, p.t_emb_dim)
        return g.leaky_vector(h)

    def _block(self, x: Map, time: str, key: str, channels: int, down: bool) -> tuple[Block, Map]:
        g, kernel = self.g, self.p.fir_1d
        h = g.conv(g.leaky(x), f"{key}.conv1.0", channels)
        shift = g.linear(time, f"{key}.dense_t1", self.p.t_emb_dim, channels)
        middle = Map(g.op("Add", h.name, g.per_channel(shift)), channels, h.size)
        h, skip = g.leaky(middle), x
        if down:
            h, skip = g.fir_down(h, kernel), g.fir_down(x, kernel)
        h = g.conv(h, f"{key}.conv2.0", channels)
        y = g.mean(h, g.conv(skip, f"{key}.skip.0", channels, kernel=1, bias=False))
        return Block(key, x, middle, channels, down), y

    def _with_stddev(self, x: Map) -> tuple[Spread, Map]:
        """Minibatch stddev over groups of min(N, 4), appended as one channel; N a multiple of 4 or at most 4.

        Sample n belongs to column n mod (N / group), as in the published view(group, -1, …).
        """
        g = self.g
        batch = g.op("Shape", x.name, start=0, end=1)
        group = g.op("Min", batch, g.ints(4))
        split = g.op("Concat", group, g.ints(-1, x.channels, x.size, x.size), axis=0)
        grouped = g.op("Reshape", x.name, split)
        centred = g.op("Sub", grouped, g.op("ReduceMean", grouped, axes=[0], keepdims=1))
        variance = g.op("ReduceMean", g.op("Mul", centred, centred), axes=[0], keepdims=1)
        deviation = g.op("Sqrt", g.op("Add", variance, g.floats(1e-8)))
        mean = g.op("ReduceMean", deviation, axes=[2, 3, 4], keepdims=1)  # [1, N/group, 1, 1, 1]
        whole = g.op("Concat", group, g.op("Div", batch, group), g.ints(1, x.size, x.size), axis=0)
        flat = g.op("Reshape", g.op("Expand", mean, whole), g.ints(-1, 1, x.size, x.size))
        return Spread(whole, centred, deviation), g.concat(x, Map(flat, 1, x.size))


def bilinear_matrix(size: int, target: int) -> np.ndarray:
    """Matrix [target, size] of linear interpolation with half-pixel centres and edge clamping."""
    matrix = np.zeros((target, size), np.float32)
    for row in range(target):
        position = max((row + 0.5) * size / target - 0.5, 0.0)
        low = min(int(position), size - 1)
        high = min(low + 1, size - 1)
        matrix[row, low] += 1.0 - (position - low)
        matrix[row, high] += position - low
    return matrix


def discriminator_graph(graph: Graph, parameters: Parameters) -> Graph:
    """`x_t`, `t`, `x_tp1` → `logits` [N, 1] and `attention` [N, 1, H, W]."""
    applied = _attention(graph, parameters)
    graph.add_output(applied.logits, "logits", FLOAT, ["N", 1])
    return graph


def attention_graph(graph: Graph, parameters: Parameters) -> Graph:
    """`x_t`, `t`, `x_tp1` → `attention` [N, 1, H, W] alone; a runtime leaves out the blocks that it does not need."""
    _attention(graph, parameters)
    return graph


def _attention(graph: Graph, parameters: Parameters) -> Application:
    size, channels = parameters.image_size, parameters.num_channels_disc // 2
    x_t = graph.add_input("x_t", FLOAT, ["N", channels, size, size])
    t = graph.add_input("t", INT64, ["N"])
    x_tp1 = graph.add_input("x_tp1", FLOAT, ["N", parameters.num_channels_disc - channels, size, size])
    network = Discriminator(graph, parameters)
    applied = network(x_t, t, x_tp1)
    graph.add_output(network.attention(applied.features), "attention", FLOAT, ["N", 1, size, size])
    return applied

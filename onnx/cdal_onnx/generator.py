"""The cDAL generator G(x_{t+1}, t, I, z) → x_0, as `condition` and `denoiser` graphs.

Layers are numbered as in published checkpoints (`all_modules.<i>`), in the order in which they are declared.
"""

from __future__ import annotations

import numpy as np

from .graph import FLOAT, INT64, Graph, Map
from .parameters import Parameters


def sinusoid(steps: int, size: int) -> np.ndarray:
    """Sinusoidal embedding [steps, size] of the integer time-steps 0..steps-1: concat(sin, cos)."""
    half = size // 2
    frequencies = np.exp(-np.arange(half) * np.log(10000.0) / (half - 1))
    angles = np.arange(steps)[:, None] * frequencies[None, :]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class Generator:
    """Adds the generator's layers to a graph; call `condition` and `denoiser` in that order or each alone."""

    def __init__(self, graph: Graph, parameters: Parameters):
        self.g = graph
        self.p = parameters
        self.first_stem = 3 + parameters.cond_enc_layers * parameters.cond_enc_num_res_blocks
        self.index = 0

    def condition(self, image: str) -> Map:
        """Condition encoder: image [N, C, H, W] → features [N, nf, H, W]."""
        g, nf = self.g, self.p.num_channels_dae
        h = g.conv(Map(image, self.p.image_channels, self.p.image_size), "all_modules.2", nf)
        for index in range(3, self.first_stem):
            key = f"all_modules.{index}.0"
            y = g.conv(g.affine_norm(h, f"{key}.in_layers.0", 32, 1e-5, silu=True), f"{key}.in_layers.2", nf)
            y = g.conv(g.affine_norm(y, f"{key}.out_layers.0", 32, 1e-5, silu=True), f"{key}.out_layers.3", nf)
            h = g.add(h, y)
        return h

    def denoiser(self, x: str, t: str, condition: str, z: str) -> Map:
        """x [N, L, H, W], t [N], condition [1 or N, nf, H, W], z [N, nz] → x_0 [N, L, H, W]."""
        g, p = self.g, self.p
        nf, size = p.num_channels_dae, p.image_size
        self.time_activation = g.silu_vector(self._time(t))
        self.latent = self._latent(z)
        self.index = self.first_stem

        pyramid = Map(x, p.num_channels, size)
        stem = g.conv(pyramid, self._next(), nf)
        h = g.add(stem, Map(condition, nf, size))
        skips = [h]
        last = len(p.ch_mult) - 1
        for level, multiplier in enumerate(p.ch_mult):
            for _ in range(p.num_res_blocks):
                h = self._res_block(h, nf * multiplier)
                if h.size in p.attn_resolutions:
                    h = self._attention(h)
                skips.append(h)
            if level < last:
                h = self._res_block(h, h.channels, "down")
                pyramid = g.conv(g.fir_blur(pyramid, p.fir_1d), f"{self._next()}.Conv2d_0", h.channels,
                                 stride=2, padding=0)
                h = pyramid = g.mean(pyramid, h)
                skips.append(h)

        h = self._res_block(h, h.channels)
        h = self._attention(h)
        h = self._res_block(h, h.channels)

        for level in reversed(range(len(p.ch_mult))):
            for _ in range(p.num_res_blocks + 1):
                h = self._res_block(g.concat(h, skips.pop()), nf * p.ch_mult[level])
            if h.size in p.attn_resolutions:
                h = self._attention(h)
            if level:
                h = self._res_block(h, h.channels, "up")

        h = g.affine_norm(h, self._next(), min(h.channels // 4, 32), 1e-6, silu=True)
        h = g.conv(h, self._next(), p.num_channels)
        return h if p.not_use_tanh else Map(g.op("Tanh", h.name), h.channels, h.size)

    def _next(self) -> str:
        key = f"all_modules.{self.index}"
        self.index += 1
        return key

    def _time(self, t: str) -> str:
        g, nf = self.g, self.p.num_channels_dae
        table = g.constant(sinusoid(self.p.num_timesteps, nf), "time_sinusoid")
        h = g.linear(g.op("Gather", table, t, axis=0), "all_modules.0", nf, 4 * nf)
        return g.linear(g.silu_vector(h), "all_modules.1", 4 * nf, 4 * nf)

    def _latent(self, z: str) -> str:
        """z_transform: PixelNorm, then Linear and SiLU 1 + n_mlp times."""
        g, p = self.g, self.p
        power = g.op("ReduceMean", g.op("Mul", z, z), axes=[1], keepdims=1)
        h = g.op("Div", z, g.op("Sqrt", g.op("Add", power, g.floats(1e-8))))
        for layer in range(1 + p.n_mlp):
            width = p.nz if layer == 0 else p.z_emb_dim
            h = g.silu_vector(g.linear(h, f"z_transform.{2 * layer + 1}", width, p.z_emb_dim))
        return h

    def _adaptive_norm(self, x: Map, key: str, offset: str | None = None) -> Map:
        """AdaGN, then SiLU: GroupNorm of x + offset [N, C], scaled and shifted by the latent embedding."""
        g = self.g
        style = g.linear(self.latent, f"{key}.style", self.p.z_emb_dim, 2 * x.channels)
        gamma, beta = g.op("Split", style, outputs=2, axis=1)
        return g.group_norm(x, min(x.channels // 4, 32), 1e-6, gamma, beta, offset, silu=True)

    def _res_block(self, x: Map, channels: int, resample: str = "") -> Map:
        g, key, kernel = self.g, self._next(), self.p.fir_1d
        h = self._adaptive_norm(x, f"{key}.GroupNorm_0")
        skip = x
        if resample == "down":
            h, skip = g.fir_down(h, kernel), g.fir_down(x, kernel)
        elif resample == "up":
            h, skip = g.fir_up(h, kernel), g.upsampled_skip(x, f"{key}.Conv_2", channels, kernel)
        h = g.conv(h, f"{key}.Conv_0", channels)
        time = g.linear(self.time_activation, f"{key}.Dense_0", 4 * self.p.num_channels_dae, channels)
        h = g.conv(self._adaptive_norm(h, f"{key}.GroupNorm_1", time), f"{key}.Conv_1", channels)
        if resample == "down" or (not resample and x.channels != channels):
            skip = g.conv(skip, f"{key}.Conv_2", channels, kernel=1)
        return g.mean(skip, h)

    def _attention(self, x: Map) -> Map:
        g, key, c = self.g, self._next(), x.channels
        h = g.affine_norm(x, f"{key}.GroupNorm_0", min(c // 4, 32), 1e-6)
        q, k, v = (g.op("Reshape", g.pointwise(h, f"{key}.NIN_{i}", c).name, g.ints(0, c, -1)) for i in range(3))
        q = g.op("Mul", q, g.floats(c**-0.5))
        scores = g.op("MatMul", g.op("Transpose", q, perm=[0, 2, 1]), k)  # [N, query pixel, key pixel]
        weights = g.op("Softmax", scores, axis=-1)
        h = g.op("MatMul", v, g.op("Transpose", weights, perm=[0, 2, 1]))  # [N, C, query pixel]
        h = Map(g.op("Reshape", h, g.ints(0, c, x.size, x.size)), c, x.size)
        return g.mean(x, g.pointwise(h, f"{key}.NIN_3", c))


def condition_graph(graph: Graph, parameters: Parameters) -> Graph:
    """`image` [N, C, H, W] → `condition` [N, nf, H, W]."""
    size = parameters.image_size
    image = graph.add_input("image", FLOAT, ["N", parameters.image_channels, size, size])
    features = Generator(graph, parameters).condition(image)
    graph.add_output(features.name, "condition", FLOAT, ["N", features.channels, size, size])
    return graph


def denoiser_graph(graph: Graph, parameters: Parameters) -> Graph:
    """`x`, `t`, `condition`, `z` → `x0`; one condition may serve the whole batch."""
    size, channels = parameters.image_size, parameters.num_channels
    x = graph.add_input("x", FLOAT, ["N", channels, size, size])
    t = graph.add_input("t", INT64, ["N"])
    condition = graph.add_input("condition", FLOAT, ["M", parameters.num_channels_dae, size, size])
    z = graph.add_input("z", FLOAT, ["N", parameters.nz])
    x0 = Generator(graph, parameters).denoiser(x, t, condition, z)
    graph.add_output(x0.name, "x0", FLOAT, ["N", channels, size, size])
    return graph


def generator_graph(graph: Graph, parameters: Parameters) -> Graph:
    """The whole generator, unsplit: `x`, `t`, `image`, `z` → `x0`. The yardstick and the body of training."""
    size, channels = parameters.image_size, parameters.num_channels
    x = graph.add_input("x", FLOAT, ["N", channels, size, size])
    t = graph.add_input("t", INT64, ["N"])
    image = graph.add_input("image", FLOAT, ["N", parameters.image_channels, size, size])
    z = graph.add_input("z", FLOAT, ["N", parameters.nz])
    network = Generator(graph, parameters)
    x0 = network.denoiser(x, t, network.condition(image).name, z)
    graph.add_output(x0.name, "x0", FLOAT, ["N", channels, size, size])
    return graph

"""The R1 penalty ‖∇_{x_t} D‖²: D's input gradient written out as a forward graph.

The runtime differentiates once. To train on a gradient, that gradient must therefore be spelt in operators that can be
differentiated in their turn. D allows it exactly: it is piecewise linear but for the minibatch stddev, and its convolutions
do not stride, so that each backward convolution is a convolution with the weight transposed and flipped. The slopes of the
LeakyReLUs are constant almost everywhere: they only choose.
"""

from __future__ import annotations

import numpy as np

from .discriminator import Application, Block, Discriminator
from .graph import Map, TrainingGraph, correlation_matrix, fir_padding


class InputGradient:
    """∇_{x_t} Σ_n D(x_t, t, x_{t+1})_n, for the first `count` samples of the batch.

    All samples pass the head, where the minibatch stddev couples them; `count` of them pass the blocks, where the cost is:
    with a count of 0 the gradient is empty and nearly free.
    """

    def __init__(self, network: Discriminator, applied: Application, count: str):
        """`count`: name of an int64 tensor [1]."""
        self.g: TrainingGraph = network.g
        self.p = network.p
        self.applied = applied
        self.count = count

    def __call__(self) -> str:
        """[count, L, H, W]."""
        gradient = self._first(self._head())
        for block in reversed(self.applied.blocks):
            gradient = self._block(block, gradient)
        pair = self._conv(gradient, "start_conv", self.p.num_channels_disc, kernel=1)
        return self._channels(pair, 0, self.p.num_channels_disc // 2).name

    def _head(self) -> Map:
        """Back to the last block: end_linear, the sum over pixels, final_conv, the minibatch stddev."""
        g, last, final = self.g, self.applied.last, self.applied.final
        weight = g.op("Reshape", g.parameter("end_linear.weight", 1, final.channels), g.ints(1, final.channels, 1, 1))
        gradient = g.op("Expand", weight, g.op("Shape", final.name))
        gradient = self._leaky(Map(gradient, final.channels, final.size), final)
        gradient = self._conv(gradient, "final_conv", last.channels + 1)
        features = self._channels(gradient, 0, last.channels)
        spread = self._channels(gradient, last.channels, last.channels + 1)
        return g.add(features, self._stddev(spread))

    def _stddev(self, gradient: Map) -> Map:
        """s = mean_{chw} √(mean_group(c²) + ε) with c centred: ∂s/∂x = c / (group · CHW · deviation).

        The gradient of s is the sum over the group and the pixels to which it was spread; over group and HW that makes a mean.
        """
        g, x, spread = self.g, self.applied.last, self.applied.spread
        grouped = g.op("Reshape", gradient.name, spread.shape)
        mean = g.op("ReduceMean", grouped, axes=[0, 2, 3, 4], keepdims=1)
        direction = g.op("Div", spread.centred, spread.deviation)
        back = g.op("Mul", g.op("Mul", direction, g.floats(1.0 / x.channels)), mean)
        return Map(g.op("Reshape", back, g.op("Shape", x.name)), x.channels, x.size)

    def _block(self, block: Block, gradient: Map) -> Map:
        g = self.g
        half = Map(g.op("Mul", gradient.name, g.floats(np.sqrt(0.5))), gradient.channels, gradient.size)
        h = self._conv(half, f"{block.key}.conv2.0", block.channels)
        skip = self._conv(half, f"{block.key}.skip.0", block.x.channels, kernel=1)
        if block.down:
            h, skip = self._fir_down(h, block.x.size), self._fir_down(skip, block.x.size)
        h = self._conv(self._leaky(h, self._first(block.middle)), f"{block.key}.conv1.0", block.x.channels)
        return g.add(self._leaky(h, self._first(block.x)), skip)

    # -- the transposed words ------------------------------------------------------------------------

    def _conv(self, gradient: Map, key: str, channels: int, kernel: int = 3) -> Map:
        """Back through `key`, a convolution [out, in = channels, k, k] of stride 1 that keeps the size."""
        g, taps = self.g, kernel**2
        weight = g.op("Transpose", g.parameter(f"{key}.weight", gradient.channels, channels, kernel, kernel), perm=[1, 0, 2, 3])
        if kernel > 1:
            flat = g.op("Reshape", weight, g.ints(channels, gradient.channels, taps))
            flipped = g.op("Gather", flat, g.ints(*reversed(range(taps))), axis=2)
            weight = g.op("Reshape", flipped, g.ints(channels, gradient.channels, kernel, kernel))
        y = g.op("Conv", gradient.name, weight, kernel_shape=[kernel, kernel], pads=[kernel // 2] * 4)
        return Map(y, channels, gradient.size)

    def _fir_down(self, gradient: Map, size: int) -> Map:
        kernel = self.p.fir_1d
        return self.g.separable(gradient, correlation_matrix(size, kernel, fir_padding(kernel), 2).T)

    def _leaky(self, gradient: Map, x: Map) -> Map:
        """Back through LeakyReLU(0.2) at x."""
        g = self.g
        weaker = g.op("Mul", gradient.name, g.floats(0.2))
        y = g.op("Where", g.op("Greater", x.name, g.floats(0.0)), gradient.name, weaker)
        return Map(y, gradient.channels, gradient.size)

    def _first(self, x: Map) -> Map:
        """The first `count` samples."""
        return Map(self.g.op("Slice", x.name, self.g.ints(0), self.count, self.g.ints(0)), x.channels, x.size)

    def _channels(self, x: Map, start: int, end: int) -> Map:
        g = self.g
        return Map(g.op("Slice", x.name, g.ints(start), g.ints(end), g.ints(1)), end - start, x.size)

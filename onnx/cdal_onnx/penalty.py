"""The R1 penalty ‖∇_{x_t} D‖²: D's input gradient written out as a forward graph.

The runtime differentiates once. To train on a gradient, that gradient must therefore be spelt in operators that can be
differentiated in their turn. D allows it exactly: it is piecewise linear but for the minibatch stddev, and its convolutions
do not stride, so that each backward convolution is a convolution with the weight transposed and flipped. The slopes of the
LeakyReLUs are constant almost everywhere: they only choose.
"""

from __future__ import annotations

import numpy as np

from .discriminator import Application, Block, Discriminator
from .graph import Map, TrainingGraph


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
        gradient = self.g.first(self._head(), self.count)
        for block in reversed(self.applied.blocks):
            gradient = self._block(block, gradient)
        pair = self.g.conv_back(gradient, "start_conv", self.p.num_channels_disc, kernel=1)
        return self._channels(pair, 0, self.p.num_channels_disc // 2).name

    def _head(self) -> Map:
        """Back to the last block: end_linear, the sum over pixels, final_conv, the minibatch stddev."""
        g, last, final = self.g, self.applied.last, self.applied.final
        weight = g.op("Reshape", g.parameter("end_linear.weight", 1, final.channels), g.ints(1, final.channels, 1, 1))
        gradient = g.op("Expand", weight, g.op("Shape", final.name))
        gradient = g.leaky_back(Map(gradient, final.channels, final.size), final, g.op("Shape", final.name, start=0, end=1))
        gradient = g.conv_back(gradient, "final_conv", last.channels + 1)
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
        h = g.conv_back(half, f"{block.key}.conv2.0", block.channels)
        skip = g.conv_back(half, f"{block.key}.skip.0", block.x.channels, kernel=1)
        if block.down:
            h, skip = (g.fir_down_back(part, block.x.size, self.p.fir_1d) for part in (h, skip))
        h = g.conv_back(g.leaky_back(h, block.middle, self.count), f"{block.key}.conv1.0", block.x.channels)
        return g.add(g.leaky_back(h, block.x, self.count), skip)

    def _channels(self, x: Map, start: int, end: int) -> Map:
        g = self.g
        return Map(g.op("Slice", x.name, g.ints(start), g.ints(end), g.ints(1)), end - start, x.size)

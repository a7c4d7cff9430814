"""First weights of an untrained network: variance scaling by average fan, uniform.

The last layer of every residual path starts near zero, so that an untrained network is close to the identity
of its skips; AdaGN starts as a plain GroupNorm.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

NEAR_ZERO = ("Conv_1.weight", "NIN_3.W", "out_layers.3.weight")


def initialiser(seed: int | tuple[int, ...]) -> Callable[[str, tuple[int, ...]], np.ndarray]:
    """A function of (published key, shape); the same seed and order of calls give the same weights."""
    random = np.random.default_rng(seed)

    def initial(key: str, shape: tuple[int, ...]) -> np.ndarray:
        if key.endswith(".style.bias"):  # (gamma, beta) = (1, 0)
            return np.repeat(np.float32([1, 0]), shape[0] // 2)
        if key.endswith((".bias", ".b")):
            return np.zeros(shape, np.float32)
        if len(shape) == 1:  # scale of an affine GroupNorm
            return np.ones(shape, np.float32)
        fan_in, fan_out = int(np.prod(shape[1:])), shape[0] * int(np.prod(shape[2:]))
        scale = 1e-10 if key.endswith(NEAR_ZERO) else 0.1 if ".NIN_" in key or ".style." in key else 1.0
        limit = np.sqrt(3.0 * scale / ((fan_in + fan_out) / 2))
        return random.uniform(-limit, limit, shape).astype(np.float32)

    return initial

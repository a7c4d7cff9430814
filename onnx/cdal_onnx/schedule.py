"""Noise schedule and posterior, for the golden case of a bundle. The daemon's own stands in `src/sampler`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .parameters import Parameters


@dataclass(frozen=True)
class Schedule:
    """Weights of the posterior mean and deviation of its noise, one entry a time-step, float64."""

    x0_weight: np.ndarray
    x_weight: np.ndarray
    deviation: np.ndarray


def schedule(p: Parameters) -> Schedule:
    """Tables for T = `num_timesteps` with the parameters' variance."""
    t = np.arange(p.num_timesteps + 1) / p.num_timesteps * (1 - 1e-3) + 1e-3
    if p.use_geometric:
        variance = p.beta_min * (p.beta_max / p.beta_min) ** t
    else:
        variance = 1 - np.exp(2 * (-0.25 * t**2 * (p.beta_max - p.beta_min) - 0.5 * t * p.beta_min))
    alpha_bar = 1 - variance
    beta = 1 - alpha_bar[1:] / alpha_bar[:-1]
    cumulative = np.cumprod(1 - beta)
    before = np.concatenate([[1.0], cumulative[:-1]])
    posterior_variance = beta * (1 - before) / (1 - cumulative)
    return Schedule(
        x0_weight=beta * np.sqrt(before) / (1 - cumulative),
        x_weight=(1 - before) * np.sqrt(1 - beta) / (1 - cumulative),
        deviation=np.sqrt(np.maximum(posterior_variance, 1e-20)),
    )

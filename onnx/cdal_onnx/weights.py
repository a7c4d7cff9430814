"""Checkpoint states: published keys → float arrays, from `.safetensors` or `.pth`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .errors import Refused


def load(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint, keys without the `module.` prefix of a data-parallel wrapper."""
    path = Path(path)
    if not path.is_file():
        raise Refused(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
        try:
            state = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise Refused(f"{path}: not a readable safetensors file: {error}") from error
    elif path.suffix in (".pth", ".pt"):
        from . import pth
        state = pth.load(path)
    else:
        raise Refused(f"{path}: {path.suffix or 'no'} suffix; a checkpoint is .safetensors, .pth or .pt")
    return {key.removeprefix("module."): finite(key, value, path) for key, value in state.items()}


def finite(key: str, value: np.ndarray, path: Path) -> np.ndarray:
    if not np.isfinite(value).all():
        raise Refused(f"{path}: tensor {key!r} holds NaN or infinity")
    return value

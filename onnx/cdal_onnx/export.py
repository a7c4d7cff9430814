"""Writes a model bundle: two graphs, manifest, golden case, model card; whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import string
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from . import __version__
from .errors import Refused
from .generator import condition_graph, denoiser_graph
from .graph import FusedGraph
from .parameters import Parameters
from .schedule import schedule

PRESETS = Path(__file__).parent / "presets"
GOLDEN_VOTES = 2
GOLDEN_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Card:
    """What a reader must know of the weights."""

    name: str
    version: str
    weights: str
    data: str
    licence: str
    notes: str = ""


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def recipe(preset: str, p: Parameters, card: Card) -> str:
    """The part of `bundle.toml` that does not depend on the weights; training starts from it."""
    template = string.Template((PRESETS / f"{preset}.toml").read_text())
    head = template.substitute(name=card.name, version=card.version, size=p.image_size, double=2 * p.image_size)
    variance = "geometric" if p.use_geometric else "preserving"
    return head + f"""
[diffusion]
steps = {p.num_timesteps}
variance = "{variance}"
beta_min = {p.beta_min}
beta_max = {p.beta_max}

[network]
label_channels = {p.num_channels}
features = {p.num_channels_dae}
latent = {p.nz}
"""


def refuse_misfit(preset: str, p: Parameters) -> None:
    """A preset and parameters that describe different tasks."""
    expected = {"hippocampus": (1, 3), "phantom": (1, 3), "lung": (1, 1), "lung-reduced": (1, 1), "nuclei": (3, 1)}[preset]
    found = (p.image_channels, p.num_channels)
    if found != expected:
        raise Refused(f"preset {preset} takes {expected[0]} image and {expected[1]} label channels; the parameters "
                      f"describe {found[0]} (dataset) and {found[1]} (num_channels); choose another preset")


def write(state: dict[str, np.ndarray], p: Parameters, preset: str, card: Card, out: Path,
          half_weights: bool = False) -> None:
    """Writes the bundle folder `out`, which must not exist."""
    refuse_misfit(preset, p)
    if out.exists():
        raise Refused(f"{out}: already exists; choose another folder or remove it")
    condition = FusedGraph(state, half_weights=half_weights)
    denoiser = FusedGraph(state, half_weights=half_weights)
    condition_graph(condition, p)
    denoiser_graph(denoiser, p)
    unused = set(state) - condition.used - denoiser.used
    if unused:
        raise Refused(f"{len(unused)} tensors of the checkpoint belong to no layer of the described network, first "
                      f"{min(unused)!r}; are these the checkpoint's own parameters?")
    files = {
        "condition.onnx": condition.model("cdal_condition").SerializeToString(deterministic=True),
        "denoiser.onnx": denoiser.model("cdal_denoiser").SerializeToString(deterministic=True),
    }
    files["golden.safetensors"] = save(golden(files, p))
    digest = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files["bundle.toml"] = (recipe(preset, p, card) + f"""
[graphs]
condition = {{ file = "condition.onnx", sha256 = "{digest['condition.onnx']}" }}
denoiser = {{ file = "denoiser.onnx", sha256 = "{digest['denoiser.onnx']}" }}

[golden]
file = "golden.safetensors"
sha256 = "{digest['golden.safetensors']}"
tolerance = {GOLDEN_TOLERANCE}

[provenance]
weights = {json.dumps(card.weights)}
data = {json.dumps(card.data)}
licence = {json.dumps(card.licence)}
exporter = "cdal_onnx {__version__}"
""").encode()
    parameters = sum(value.size for value in state.values())
    files["MODEL_CARD.md"] = model_card(preset, p, card, parameters, half_weights).encode()

    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=".bundle-"))
    try:
        for name, content in files.items():
            (scratch / name).write_bytes(content)
        scratch.chmod(0o755)
        os.replace(scratch, out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def golden(files: dict[str, bytes], p: Parameters) -> dict[str, np.ndarray]:
    """One image with all its noise and the mean of votes that the graphs give for it."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    run = {name: onnxruntime.InferenceSession(files[f"{name}.onnx"]).run for name in ("condition", "denoiser")}
    random = np.random.default_rng(0)
    size, votes = p.image_size, GOLDEN_VOTES
    grid = np.linspace(-1, 1, size, dtype=np.float32)
    rings = np.sin(6 * np.hypot(grid[:, None] - 0.2, grid[None, :] + 0.1))
    image = np.broadcast_to(rings, (1, p.image_channels, size, size)).astype(np.float32)
    normal = lambda *shape: random.standard_normal(shape, np.float32)  # noqa: E731
    x_init = normal(votes, p.num_channels, size, size)
    z = normal(p.num_timesteps, votes, p.nz)
    noise = normal(p.num_timesteps, *x_init.shape)

    tables = schedule(p)
    features = run["condition"](None, {"image": image})[0]
    x = x_init
    for i in reversed(range(p.num_timesteps)):
        t = np.full(votes, i, np.int64)
        x0 = run["denoiser"](None, {"x": x, "t": t, "condition": features, "z": z[i]})[0]
        x = np.float32(tables.x0_weight[i]) * x0 + np.float32(tables.x_weight[i]) * x
        if i:
            x = x + np.float32(tables.deviation[i]) * noise[i]
    mean = np.clip((x + 1) / 2, 0, 1).mean(axis=0, keepdims=True)
    if not np.isfinite(mean).all():
        raise Refused("the golden case came out as NaN or infinity; are the weights sound?")
    return {"image": np.ascontiguousarray(image), "x_init": x_init, "z": z, "noise": noise, "mean": mean}


def model_card(preset: str, p: Parameters, card: Card, parameters: int, half_weights: bool) -> str:
    return f"""# {card.name} {card.version}

A cDAL generator (conditional diffusion with spatial attention and latent embedding, MICCAI 2024) for the
`{preset}` task, made by an independent implementation.

| | |
|---|---|
| input | {p.image_channels} channel(s), {p.image_size} x {p.image_size} pixels |
| parameters | {parameters:,}{", stored as float16, computed in float32" if half_weights else ""} |
| time-steps T | {p.num_timesteps} |
| latent nz | {p.nz} |
| weights | {card.weights} |
| training data | {card.data} |
| licence of the weights | {card.licence} |

Not a medical device. The bundle's golden case must be reproduced within {GOLDEN_TOLERANCE:g} before the model is used;
`cdal bundle check` and the daemon do that when they load it.
{chr(10) + card.notes.strip() + chr(10) if card.notes.strip() else ""}"""

"""A bundle with a variant of its denoiser, which is admitted only where its masks agree with the canonical one's."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
from safetensors.numpy import load_file

from . import half, quantize
from .errors import Refused
from .schedule import schedule


def write(bundle: Path, precision: str, images: np.ndarray, votes: int | None, least_dice: float, out: Path) -> float:
    """Copies `bundle` to `out`, which must not exist, with a denoiser in `precision`; int8 is calibrated on half of `images`
    [N, C, H, W] at least. Returns the least Dice of a label over all of them."""
    if out.exists():
        raise Refused(f"{out}: already exists; choose another folder or remove it")
    text = (bundle / "bundle.toml").read_text()
    manifest = tomllib.loads(text)
    if any(variant["precision"] == precision for variant in manifest.get("variants", [])):
        raise Refused(f"{bundle}: has a denoiser in {precision} already; start from the bundle without it")
    if images.ndim != 4 or list(images.shape[1:]) != [manifest["input"]["channels"], *manifest["input"]["size"]]:
        raise Refused(f"the images are {list(images.shape)}, the bundle takes [N, {manifest['input']['channels']}, "
                      f"{', '.join(map(str, manifest['input']['size']))}]; make them with this bundle")
    graphs = {name: _checked(bundle, manifest["graphs"][name]) for name in ("condition", "denoiser")}
    golden = load_file(bundle / manifest["golden"]["file"])
    canonical = Sampler(manifest, graphs["condition"], graphs["denoiser"])

    model = onnx.load_from_string(graphs["denoiser"])
    if precision == "fp16":
        model = half.fp16(model)
    else:
        feeds: list[quantize.Feed] = []
        # The golden case is part of it, since the variant must reproduce it too.
        canonical.mean(golden["image"], golden["x_init"], golden["z"], golden["noise"], feeds)
        for number, image in enumerate(images[::2]):
            canonical.drawn(image[None], 1, number, feeds)
        model = quantize.int8(model, feeds)
    variant = model.SerializeToString(deterministic=True)
    quick = Sampler(manifest, graphs["condition"], variant)
    count = votes or manifest["votes"]
    masks = [[sampler.mask(sampler.drawn(image[None], count, number)) for number, image in enumerate(images)]
             for sampler in (canonical, quick)]
    if not any(mask.any() for mask in masks[0]):
        raise Refused("float32 finds nothing in any of these images, so that their Dice would say nothing; take others")
    dice = _least_dice(*masks)
    if dice < least_dice:
        raise Refused(f"Dice {dice:.4f} with float32's masks, asked are {least_dice:g}; not written. More or other crops "
                      "may calibrate better, or --least-dice lower what is asked")
    found = quick.mean(golden["image"], golden["x_init"], golden["z"], golden["noise"])
    rms = float(np.sqrt(np.square(found - golden["mean"]).mean()))
    name = f"denoiser.{precision}.onnx"
    text += f"""
[[variants]]
precision = "{precision}"
denoiser = {{ file = "{name}", sha256 = "{hashlib.sha256(variant).hexdigest()}" }}
dice = {dice:.6f}
least_dice = {least_dice}
cases = {len(images)}
golden_rms = {rms:.6f}
"""
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=".bundle-"))
    try:
        shutil.copytree(bundle, scratch, dirs_exist_ok=True)
        (scratch / name).write_bytes(variant)
        (scratch / "bundle.toml").write_text(text)
        scratch.chmod(0o755)
        os.replace(scratch, out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return dice


def _checked(bundle: Path, file: dict) -> bytes:
    content = (bundle / file["file"]).read_bytes()
    if hashlib.sha256(content).hexdigest() != file["sha256"]:
        raise Refused(f"{bundle / file['file']}: not what bundle.toml says; copy the bundle again")
    return content


class Sampler:
    """The few-step sampler of a bundle, by numpy and the runtime's Python module."""

    def __init__(self, manifest: dict, condition: bytes, denoiser: bytes) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        diffusion, network = manifest["diffusion"], manifest["network"]
        self.steps, self.latent, self.manifest = diffusion["steps"], network["latent"], manifest
        self.label = [network["label_channels"], *manifest["input"]["size"]]
        self.tables = schedule(SimpleNamespace(
            num_timesteps=diffusion["steps"], use_geometric=diffusion["variance"] == "geometric",
            beta_min=diffusion["beta_min"], beta_max=diffusion["beta_max"]))
        self.condition, self.denoiser = (onnxruntime.InferenceSession(graph) for graph in (condition, denoiser))

    def mean(self, image: np.ndarray, x: np.ndarray, z: np.ndarray, noise: np.ndarray,
             feeds: list[quantize.Feed] | None = None) -> np.ndarray:
        """Mean of the votes [1, L, H, W]; what the denoiser was given is added to `feeds`."""
        features = self.condition.run(None, {"image": image})[0]
        for i in reversed(range(self.steps)):
            feed = {"x": x, "t": np.full(len(x), i, np.int64), "condition": features, "z": z[i]}
            if feeds is not None:
                feeds.append(feed)
            x0 = self.denoiser.run(None, feed)[0]
            x = np.float32(self.tables.x0_weight[i]) * x0 + np.float32(self.tables.x_weight[i]) * x
            if i:
                x = x + np.float32(self.tables.deviation[i]) * noise[i]
        return np.clip((x + 1) / 2, 0, 1).mean(axis=0, keepdims=True)

    def drawn(self, image: np.ndarray, votes: int, seed: int, feeds: list[quantize.Feed] | None = None) -> np.ndarray:
        random = np.random.default_rng(seed)
        x, z = (random.standard_normal(shape, np.float32)
                for shape in ((votes, *self.label), (self.steps, votes, self.latent)))
        return self.mean(image, x, z, random.standard_normal((self.steps, votes, *self.label), np.float32), feeds)

    def mask(self, mean: np.ndarray) -> np.ndarray:
        decision = self.manifest["decision"]
        if decision["kind"] == "argmax":
            return np.rint(mean[0]).argmax(axis=0)
        inverted = decision["foreground"] == "negative"
        return np.rint(1 - mean[0, 0] if inverted else mean[0, 0]).astype(int)


def _least_dice(canonical: list[np.ndarray], other: list[np.ndarray]) -> float:
    """Of any label, over all images together."""
    a, b = np.stack(canonical), np.stack(other)
    labels = np.union1d(np.unique(a), np.unique(b))
    of = [2 * np.sum((a == label) & (b == label)) / (np.sum(a == label) + np.sum(b == label)) for label in labels if label]
    return float(min(of, default=1.0))

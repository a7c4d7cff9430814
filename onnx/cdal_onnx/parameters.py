"""`parameters.json`: the published description of a cDAL model, checked before anything is built."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import Refused

# Keys whose value must be one of these; everything else in the network's description is free.
SUPPORTED = {
    "embedding_type": ["positional"],
    "conditional": [True],
    "resblock_type": ["biggan"],
    "fir": [True],
    "resamp_with_conv": [True],
    "skip_rescale": [True],
    "progressive": ["none"],
    "progressive_input": ["residual"],
    "progressive_combine": ["sum"],
    "centered": [True],
    "not_use_tanh": [True, False],
    "use_geometric": [True, False],
}


@dataclass(frozen=True)
class Parameters:
    """A supported model. Names as published; sizes in channels, resolutions in pixels."""

    image_size: int
    num_channels: int  # label channels L
    num_channels_disc: int
    image_channels: int  # 3 for `dataset` "monu", else 1
    small_discriminator: bool  # `dataset` "hippo"
    num_channels_dae: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    cond_enc_layers: int
    cond_enc_num_res_blocks: int
    n_mlp: int
    nz: int
    z_emb_dim: int
    t_emb_dim: int
    ngf: int
    attn_scale: int
    num_timesteps: int
    fir_kernel: tuple[float, ...]
    not_use_tanh: bool
    use_geometric: bool
    beta_min: float
    beta_max: float

    @property
    def fir_1d(self) -> np.ndarray:
        """One axis of the separable FIR kernel [K], sum 1."""
        kernel = np.asarray(self.fir_kernel, np.float64)
        return kernel / kernel.sum()


def load(path: str | Path) -> Parameters:
    """Reads and checks a `parameters.json`; `Refused` names the key, the value and what is supported."""
    try:
        raw = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise Refused(f"{path}: a JSON object of parameters is expected, not a {type(raw).__name__}")
    return parse(raw, str(path))


def parse(raw: dict, where: str = "parameters") -> Parameters:
    """Checks a parsed `parameters.json`; every fault is reported at once."""
    faults: list[str] = []

    for key, allowed in SUPPORTED.items():
        value = raw.get(key, allowed[0] if key == "progressive_combine" else None)
        if not any(value is a or (value == a and type(value) is type(a)) for a in allowed):
            options = " or ".join(json.dumps(a) for a in allowed)
            faults.append(f"{key} = {json.dumps(value)} is not supported; supported: {options}")

    def integer(key: str, default: int | None = None, least: int = 1) -> int:
        value = raw.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            faults.append(f"{key} = {json.dumps(value)} must be a whole number of at least {least}")
            return least
        return value

    def number(key: str, default: float) -> float:
        value = raw.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
            faults.append(f"{key} = {json.dumps(value)} must be a positive number")
            return 1.0
        return float(value)

    def numbers(key: str, kind: type, may_be_empty: bool = False) -> tuple:
        value = raw.get(key)
        kinds = (int,) if kind is int else (int, float)
        good = isinstance(value, list) and (value or may_be_empty) and all(
            isinstance(v, kinds) and not isinstance(v, bool) and v > 0 for v in value)
        if not good:
            faults.append(f"{key} = {json.dumps(value)} must be a list of positive numbers")
            return (kind(1),)
        return tuple(kind(v) for v in value)

    dataset = raw.get("dataset")
    if dataset not in ("hippo", "lung", "monu"):
        faults.append(f'dataset = {json.dumps(dataset)} is not supported; supported: "hippo", "lung", "monu"')
    fir_kernel = numbers("fir_kernel", float)
    if fir_kernel != fir_kernel[::-1]:
        faults.append(f"fir_kernel = {json.dumps(list(fir_kernel))} is not supported; supported: symmetric kernels")
    if len(fir_kernel) < 2:
        faults.append(f"fir_kernel has {len(fir_kernel)} tap; supported: at least two, as in [1, 3, 3, 1]")
    ch_mult = numbers("ch_mult", int)
    num_channels = integer("num_channels")
    parsed = Parameters(
        image_size=integer("image_size"),
        num_channels=num_channels,
        num_channels_disc=integer("num_channels_disc", 2 * num_channels),
        image_channels=3 if dataset == "monu" else 1,
        small_discriminator=dataset == "hippo",
        num_channels_dae=integer("num_channels_dae"),
        ch_mult=ch_mult,
        num_res_blocks=integer("num_res_blocks"),
        attn_resolutions=numbers("attn_resolutions", int, may_be_empty=True),
        cond_enc_layers=integer("cond_enc_layers"),
        cond_enc_num_res_blocks=integer("cond_enc_num_res_blocks"),
        n_mlp=integer("n_mlp", least=0),
        nz=integer("nz"),
        z_emb_dim=integer("z_emb_dim"),
        t_emb_dim=integer("t_emb_dim", 256),
        ngf=integer("ngf", 64),
        attn_scale=integer("attn_scale", 2, least=0),
        num_timesteps=integer("num_timesteps"),
        fir_kernel=fir_kernel,
        not_use_tanh=bool(raw.get("not_use_tanh", False)),
        use_geometric=bool(raw.get("use_geometric", False)),
        beta_min=number("beta_min", 0.1),
        beta_max=number("beta_max", 20.0),
    )
    if parsed.num_channels_dae % 32:
        faults.append(f"num_channels_dae = {parsed.num_channels_dae} must be a multiple of 32 "
                      "(the condition encoder normalises over 32 groups)")
    halvings = 2 ** (len(ch_mult) - 1)
    if parsed.image_size % halvings or parsed.image_size < 2 * halvings:
        faults.append(f"image_size = {parsed.image_size} cannot be halved {len(ch_mult) - 1} times "
                      f"as ch_mult asks; supported: multiples of {halvings}, at least {2 * halvings}")
    if faults:
        raise Refused(f"{where}: " + "; ".join(faults))
    return parsed

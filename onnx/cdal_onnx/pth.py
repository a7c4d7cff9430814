"""`.pth` checkpoints without trusting them: torch's safe loader where torch is installed, else our own.

A `.pth` is a zip of one pickle and the raw storages. A pickle may call anything; this reader knows four
names and refuses every other one, so that nothing but tensors and plain containers can come out of it.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np

from .errors import Refused

STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def load(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a state dict, or of one under `state_dict`, `netG_dict` or `model` inside a larger checkpoint."""
    try:
        import torch
    except ImportError:
        content = _load_restricted(path)
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds; each means the same here
            raise Refused(f"{path}: torch cannot load it as plain tensors: {error}") from error
    for key in ("state_dict", "netG_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise Refused(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    state = {}
    for key, value in content.items():
        array = value.detach().numpy() if hasattr(value, "detach") else value
        if isinstance(array, np.ndarray):
            state[str(key)] = array
    if not state:
        raise Refused(f"{path}: holds no tensors")
    return state


class _Storage:
    def __init__(self, dtype):
        self.dtype = dtype


def _rebuild_tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_unused) -> np.ndarray:
    if not all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride)):
        raise pickle.UnpicklingError("negative size, stride or offset")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride)) if all(size) else offset - 1
    if last >= storage.size:
        raise pickle.UnpicklingError("a tensor reaches past its storage")
    view = np.lib.stride_tricks.as_strided(
        storage[offset:], size, [s * storage.itemsize for s in stride], writeable=False)
    return view.copy()


def _rebuild_parameter(data: np.ndarray, *_unused) -> np.ndarray:
    return data


class _TensorsOnly(pickle.Unpickler):
    def __init__(self, stream, storages):
        super().__init__(stream)
        self.storages = storages

    def find_class(self, module: str, name: str):
        if module == "torch" and name in STORAGES:
            return _Storage(STORAGES[name])
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
            ("collections", "OrderedDict"): dict,
        }
        if (module, name) in known:
            return known[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not a tensor")

    def persistent_load(self, pid):
        kind, storage, key, _device, count = pid
        if kind != "storage" or not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("unknown persistent object")
        return self.storages(storage.dtype, str(key), int(count))


def _load_restricted(path: Path):
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise Refused(f"{path}: not a zip checkpoint ({error}); save it again with a torch of 1.6 or later") from error
    with archive:
        names = [n for n in archive.namelist() if n.endswith("data.pkl")]
        if len(names) != 1:
            raise Refused(f"{path}: a checkpoint has one data.pkl, this has {len(names)}")
        prefix = names[0].removesuffix("data.pkl")

        def storage(dtype, key: str, count: int) -> np.ndarray:
            data = archive.read(f"{prefix}data/{key}")
            if len(data) != count * np.dtype(dtype).itemsize:
                raise pickle.UnpicklingError(f"storage {key} has {len(data)} bytes for {count} values")
            return np.frombuffer(data, dtype)

        try:
            return _TensorsOnly(io.BytesIO(archive.read(names[0])), storage).load()
        except Refused:
            raise
        except Exception as error:  # whatever a hostile pickle provokes, the answer is the same
            raise Refused(f"{path}: refused, {error}") from error

"""Sets up the runtime libraries: fetches pinned wheels, takes the library out, checks it, loads it once.

The inference library comes out of the `onnxruntime` wheel as it is. The training library is made from the last
published training build (`training_library`). Wheels are pinned by the SHA-256 in `runtime-*.txt` and checked
by pip; each finished library is pinned here.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from . import training_library
from .errors import Refused


@dataclass(frozen=True)
class Library:
    """One library: where it stands under the runtime folder, and how it is obtained."""

    path: str
    version: str
    requirements: str
    wheel_platform: str
    member: str  # file inside the wheel
    sha256: str  # of the finished library
    is_training: bool = False


INFERENCE = {
    "x86_64": Library(
        "libonnxruntime.so.1.32.0", "1.32.0", "runtime-inference.txt", "manylinux_2_28_x86_64",
        "onnxruntime/capi/libonnxruntime.so.1.32.0",
        "6c1585d1bbf45b0712ea4a21b705c5fcb4ba04ff2e30f1fbf81a49faf658638f"),
    "aarch64": Library(
        "libonnxruntime.so.1.32.0", "1.32.0", "runtime-inference.txt", "manylinux_2_28_aarch64",
        "onnxruntime/capi/libonnxruntime.so.1.32.0",
        "49852228a93995158b2a813d4df487d47a1b76b0eaa894507ef49e91b6d7954a"),
}
TRAINING = {
    "x86_64": Library(
        "training/libonnxruntime.so.1.19.2", "1.19.2", "runtime-training.txt", "manylinux_2_28_x86_64",
        "onnxruntime/capi/onnxruntime_pybind11_state.cpython-311-x86_64-linux-gnu.so",
        "a0f4203de5392fa55cebe32d9945b505f54054021baf4235215c30a22c64a021", is_training=True),
}


def set_up(folder: Path) -> None:
    """Puts the libraries of this machine under `folder`; those already there and intact are kept."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in INFERENCE:
        raise Refused(f"no pinned ONNX Runtime for {sys.platform} on {machine}; supported: Linux on "
                      f"{', '.join(INFERENCE)}. Point ORT_DYLIB_PATH to a library of your own (1.19 or later)")
    _provide(INFERENCE[machine], folder)
    if machine in TRAINING:
        _provide(TRAINING[machine], folder)
    else:
        print(f"training library: none published for {machine}; `cdal train` needs a training build of your own "
              "(ORT_TRAINING_DYLIB_PATH)", file=sys.stderr)


def _provide(library: Library, folder: Path) -> None:
    target = folder / library.path
    if not (target.is_file() and _sha256(target) == library.sha256):
        target.parent.mkdir(parents=True, exist_ok=True)
        _make(library, target)
    _load_once(target, library.version)
    print(f"{target}: ONNX Runtime {library.version}, SHA-256 as pinned, loads", file=sys.stderr)


def _make(library: Library, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        requirements = Path(__file__).parent.parent / library.requirements
        # One Python version for everyone, so that one wheel and one hash serve every interpreter.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                   "--require-hashes", "--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp",
                   "--abi", "cp311", "--platform", library.wheel_platform, "-r", str(requirements), "-d", scratch]
        if subprocess.run(command, check=False).returncode:
            raise Refused(f"the wheel pinned in {requirements} could not be fetched; see pip's message above")
        wheel = next(Path(scratch).glob("*.whl"))
        made = Path(scratch) / "library.so"
        with zipfile.ZipFile(wheel) as archive:
            made.write_bytes(archive.read(library.member))
        if library.is_training:
            training_library.convert(made, made, library.version)
        if (found := _sha256(made)) != library.sha256:
            raise Refused(f"{library.path}: SHA-256 is {found}, pinned is {library.sha256}; not installed")
        made.chmod(0o755)
        os.replace(made, target)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Asks the library itself; in a process of its own, so that a library that crashes is a message here.
_PROBE = """
import ctypes, sys
class Base(ctypes.Structure):
    _fields_ = [("get_api", ctypes.c_void_p), ("version", ctypes.CFUNCTYPE(ctypes.c_char_p))]
library = ctypes.CDLL(sys.argv[1])
library.OrtGetApiBase.restype = ctypes.POINTER(Base)
print(library.OrtGetApiBase().contents.version().decode())
"""


def _load_once(path: Path, version: str) -> None:
    probe = subprocess.run([sys.executable, "-c", _PROBE, str(path)], capture_output=True, text=True, check=False)
    if probe.returncode or probe.stdout.strip() != version:
        said = probe.stdout.strip() or probe.stderr.strip().splitlines()[-1:] or f"status {probe.returncode}"
        raise Refused(f"{path}: does not load as ONNX Runtime {version}: {said}")

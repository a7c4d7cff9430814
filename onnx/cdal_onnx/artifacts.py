"""Training artifacts for ONNX Runtime's training API: training, eval and optimizer graphs and a checkpoint.

Made offline, once per network and batch shape; the training itself is `cdal train`.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import sys
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from safetensors.numpy import save_file

from .errors import Refused
from .generator import Generator
from .graph import FLOAT, INT64, TrainingGraph
from .initial import initialiser
from .parameters import Parameters


def generator_training_graph(parameters: Parameters, state: dict[str, np.ndarray], seed: int) -> TrainingGraph:
    """`x`, `t`, `image`, `z`, `target` → `loss` (mean squared error, scalar) and `x0`."""
    p, size = parameters, parameters.image_size
    g = TrainingGraph(state, initialiser(seed))
    x = g.add_input("x", FLOAT, ["N", p.num_channels, size, size])
    t = g.add_input("t", INT64, ["N"])
    image = g.add_input("image", FLOAT, ["N", p.image_channels, size, size])
    z = g.add_input("z", FLOAT, ["N", p.nz])
    target = g.add_input("target", FLOAT, ["N", p.num_channels, size, size])
    network = Generator(g, p)
    x0 = network.denoiser(x, t, network.condition(image).name, z)
    difference = g.op("Sub", x0.name, target)
    loss = g.op("ReduceMean", g.op("Mul", difference, difference), keepdims=0)
    g.add_output(loss, "loss", FLOAT, [])
    g.add_output(x0.name, "x0", FLOAT, ["N", p.num_channels, size, size])
    return g


def write(parameters: Parameters, state: dict[str, np.ndarray], folder: Path, seed: int,
          betas: tuple[float, float], recipe: str, freeze: Sequence[str] = ()) -> None:
    """Writes the artifacts of the generator's training session to `folder`, whole or not at all.

    `parameters.safetensors` beside them holds the first weights, whose keys and shapes are the trainable ones, and
    `frozen.safetensors` those whose published names match a pattern of `freeze`, if any;
    `recipe.toml` says how images become network input.
    """
    if folder.exists():
        raise Refused(f"{folder}: already exists; remove it to make the artifacts anew")
    artifacts = _artifacts_module()
    graph = generator_training_graph(parameters, state, seed)
    graph.refuse_unused("training artifacts")
    frozen = frozen_keys(graph.used, freeze)
    trained = sorted(graph.used - frozen)
    from onnxruntime.training import onnxblock

    # Adam: AdamW with decay 0 updates alike, and torch's epsilon is 1e-8.
    adam = onnxblock.optim.AdamW(betas=betas, eps=1e-8, weight_decay=0.0)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".artifacts-"))
    try:
        artifacts.generate_artifacts(graph.model("cdal_generator_training"), requires_grad=trained,
                                     optimizer=adam, artifact_directory=str(scratch),
                                     additional_output_names=["x0"], loss=_first_output(onnxblock))
        (scratch / "recipe.toml").write_text(recipe)
        save_file({key: graph.state[key] for key in trained}, scratch / "parameters.safetensors")
        if frozen:
            save_file({key: graph.state[key] for key in sorted(frozen)}, scratch / "frozen.safetensors")
        os.replace(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def frozen_keys(keys: set[str], patterns: Sequence[str]) -> set[str]:
    """The keys that match one of the patterns; a pattern that matches none, or all of them together, is refused."""
    frozen = set()
    for pattern in patterns:
        matching = {key for key in keys if fnmatch.fnmatchcase(key, pattern)}
        if not matching:
            raise Refused(f"freeze: no weights are named like {pattern!r}; names are such as {min(keys)!r}")
        frozen |= matching
    if frozen == keys:
        raise Refused("freeze: the patterns leave nothing to train")
    return frozen


def _first_output(onnxblock):
    """The graph computes its own loss; the block only names it."""

    class Loss(onnxblock.blocks.Block):
        def build(self, loss, *_others):
            return loss

    return Loss()


def _artifacts_module():
    """`onnxruntime.training.artifacts` without the package's `__init__`, which asks for torch."""
    try:
        import onnxruntime
    except ImportError as error:
        raise Refused(f"training artifacts need the onnxruntime-training-cpu wheel: {error}") from error
    folder = Path(onnxruntime.__file__).parent / "training"
    if not folder.is_dir():
        raise Refused("the installed onnxruntime has no training part; install onnxruntime-training-cpu 1.19.2")
    if "onnxruntime.training" not in sys.modules:
        package = types.ModuleType("onnxruntime.training")
        package.__path__ = [str(folder)]
        sys.modules["onnxruntime.training"] = package
        onnxruntime.training = package
    from onnxruntime.training import artifacts

    assert onnx.__version__.startswith("1.16."), "the gradient builder was tried with onnx 1.16"
    return artifacts

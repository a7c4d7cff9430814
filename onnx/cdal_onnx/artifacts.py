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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from safetensors.numpy import save_file

from . import gradients
from .discriminator import Discriminator, attention_graph
from .errors import Refused
from .generator import Generator, generator_graph
from .graph import FLOAT, INT64, FusedTrainingGraph, Graph, TrainingGraph
from .initial import initialiser
from .parameters import Parameters
from .penalty import InputGradient


@dataclass(frozen=True)
class Adam:
    """AdamW with decay 0 updates as Adam does; 1e-8 is the published epsilon."""

    betas: tuple[float, float] = (0.5, 0.9)
    epsilon: float = 1e-8


@dataclass(frozen=True)
class Adversary:
    """The discriminator beside the generator: its first weights, and whether the generator's loss sees it."""

    state: dict[str, np.ndarray]
    adam: Adam
    in_generators_loss: bool = False


def generator_training_graph(parameters: Parameters, state: dict[str, np.ndarray], seed: int, adversarial: bool = False,
                             dialect: type[TrainingGraph] = FusedTrainingGraph) -> TrainingGraph:
    """`x`, `t`, `image`, `z`, `target` → `loss` (mean squared error, scalar) and `x0`.

    With `adversarial`, `loss` is `mse` + adversarial_weight · `adversarial`, where adversarial =
    mean softplus(-D(x_pos, t, x)) of the posterior sample x_pos = x0_weight · x0 + x_rest. It takes `x0_weight` [N, 1, 1, 1],
    `x_rest` [N, L, H, W], `adversarial_weight` [1] and D's weights `discriminator.<key>` besides.
    """
    p, size = parameters, parameters.image_size
    g = dialect(state, initialiser(seed))
    x = g.add_input("x", FLOAT, ["N", p.num_channels, size, size])
    t = g.add_input("t", INT64, ["N"])
    image = g.add_input("image", FLOAT, ["N", p.image_channels, size, size])
    z = g.add_input("z", FLOAT, ["N", p.nz])
    target = g.add_input("target", FLOAT, ["N", p.num_channels, size, size])
    network = Generator(g, p)
    x0 = network.denoiser(x, t, network.condition(image).name, z)
    difference = g.op("Sub", x0.name, target)
    mse = loss = g.op("ReduceMean", g.op("Mul", difference, difference), keepdims=0)
    if adversarial:
        x0_weight = g.add_input("x0_weight", FLOAT, ["N", 1, 1, 1])
        x_rest = g.add_input("x_rest", FLOAT, ["N", p.num_channels, size, size])
        weight = g.add_input("adversarial_weight", FLOAT, [1])
        x_pos = g.op("Add", g.op("Mul", x0_weight, x0.name), x_rest)
        term = _mean_softplus(g, g.op("Neg", Discriminator(g.frozen("discriminator"), p)(x_pos, t, x).logits))
        loss = g.op("Add", mse, g.op("Mul", g.op("Squeeze", weight, g.ints(0)), term))
    g.add_output(loss, "loss", FLOAT, [])
    g.add_output(x0.name, "x0", FLOAT, ["N", p.num_channels, size, size])
    if adversarial:
        g.add_output(mse, "mse", FLOAT, [])
        g.add_output(term, "adversarial", FLOAT, [])
    return g


def discriminator_training_graph(parameters: Parameters, state: dict[str, np.ndarray], seed: int,
                                 dialect: type[TrainingGraph] = FusedTrainingGraph) -> TrainingGraph:
    """`x_t`, `t`, `x_tp1`, `x_pos`, `r1_weight` → `loss` and its terms `real`, `fake`, `r1`, scalars.

    real = mean softplus(-D(x_t, t, x_{t+1})), fake = mean softplus(D(x_pos, t, x_{t+1})),
    r1 = r1_weight · mean_n ‖∇_{x_t} D(x_t, t, x_{t+1})‖², exactly. An `r1_weight` of 0 skips the work of r1.
    """
    p, size = parameters, parameters.image_size
    g = dialect(state, initialiser((seed, 1)))  # other numbers than the generator's
    label = ["N", p.num_channels, size, size]
    x_t, t, x_tp1, x_pos = (g.add_input("x_t", FLOAT, label), g.add_input("t", INT64, ["N"]),
                            g.add_input("x_tp1", FLOAT, label), g.add_input("x_pos", FLOAT, label))
    r1_weight = g.add_input("r1_weight", FLOAT, [1])
    network = Discriminator(g, p)
    applied = network(x_t, t, x_tp1)
    real = _mean_softplus(g, g.op("Neg", applied.logits))
    fake = _mean_softplus(g, network(x_pos, t, x_tp1).logits)

    batch = g.op("Shape", x_t, start=0, end=1)
    asked = g.op("Cast", g.op("Greater", r1_weight, g.floats(0.0)), to=INT64)
    # One sample at least: the runtime's gradient of a convolution divides by the size of the batch.
    count = g.op("Max", g.op("Mul", batch, asked), g.ints(1))
    gradient = InputGradient(network, applied, count)()
    power = g.op("ReduceSum", g.op("Mul", gradient, gradient), keepdims=0)
    weight = g.op("Div", g.op("Squeeze", r1_weight, g.ints(0)), g.op("Squeeze", g.op("Cast", batch, to=FLOAT), g.ints(0)))
    r1 = g.op("Mul", power, weight)

    g.add_output(g.op("Add", g.op("Add", real, fake), r1), "loss", FLOAT, [])
    for term, name in ((real, "real"), (fake, "fake"), (r1, "r1")):
        g.add_output(term, name, FLOAT, [])
    return g


def _mean_softplus(g: TrainingGraph, x: str) -> str:
    """Mean of log(1 + eˣ), accurate in relative terms: relu(x) + log1p(u) with u = e^-|x|.

    log1p(u) = 2 artanh(s) with s = u / (2 + u) ≤ 1/3, of which eight terms of the series are all that float32 holds.
    """
    positive = g.op("Relu", x)
    # 2 relu(x) - x is |x| with a slope at 0 that makes the derivative there the right one, 1/2.
    u = g.op("Exp", g.op("Sub", x, g.op("Mul", positive, g.floats(2.0))))
    s = g.op("Div", u, g.op("Add", u, g.floats(2.0)))
    square = g.op("Mul", s, s)
    series = g.floats(2.0 / 15)
    for odd in range(13, 0, -2):
        series = g.op("Add", g.op("Mul", square, series), g.floats(2.0 / odd))
    return g.op("ReduceMean", g.op("Add", positive, g.op("Mul", s, series)), keepdims=0)


def write(parameters: Parameters, state: dict[str, np.ndarray], folder: Path, seed: int, adam: Adam, recipe: str,
          adversary: Adversary | None = None, freeze: Sequence[str] = (),
          dialect: type[TrainingGraph] = FusedTrainingGraph) -> None:
    """Writes the artifacts of a run to `folder`, whole or not at all: the generator's training session, and in
    `discriminator/` that of its adversary, if it has one.

    `parameters.safetensors` beside each holds the first weights, whose keys and shapes are the trainable ones, and
    `frozen.safetensors` those of the generator whose published names match a pattern of `freeze`, if any;
    `recipe.toml` says how images become network input.
    """
    if folder.exists():
        raise Refused(f"{folder}: already exists; remove it to make the artifacts anew")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".artifacts-"))
    try:
        in_loss = adversary is not None and adversary.in_generators_loss
        graph = generator_training_graph(parameters, state, seed, in_loss, dialect)
        _session("generator", graph, generator_graph(dialect(graph.state), parameters), adam, scratch, freeze)
        if adversary:
            graph = discriminator_training_graph(parameters, adversary.state, seed, dialect)
            beside = scratch / "discriminator"
            beside.mkdir()
            _session("discriminator", graph, attention_graph(dialect(graph.state), parameters), adversary.adam, beside)
        (scratch / "recipe.toml").write_text(recipe)
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


def _session(name: str, training: TrainingGraph, evaluation: Graph, adam: Adam, folder: Path,
             freeze: Sequence[str] = ()) -> None:
    """Graphs, checkpoint and first weights of one training session; `evaluation` is what its EvalStep runs."""
    training.refuse_unused(f"training artifacts of the {name}")
    artifacts = _artifacts_module()
    from onnxruntime.training import onnxblock

    optimizer = onnxblock.optim.AdamW(betas=adam.betas, eps=adam.epsilon, weight_decay=0.0)
    frozen = frozen_keys(training.used, freeze)
    trained = sorted(training.used - frozen)
    artifacts.generate_artifacts(training.model(f"cdal_{name}_training"), requires_grad=trained, optimizer=optimizer,
                                 artifact_directory=str(folder), loss=_first_output(onnxblock),
                                 additional_output_names=[output.name for output in training.outputs[1:]])
    path = folder / "training_model.onnx"
    model = onnx.load(path)
    gradients.complete(model)
    onnx.save(model, path)
    order = [value.name for value in model.graph.input if value.name in trained]
    onnx.save(_with_weights_as_inputs(evaluation.model(f"cdal_{name}"), order, training.state), folder / "eval_model.onnx")
    save_file({key: training.state[key] for key in trained}, folder / "parameters.safetensors")
    if frozen:
        save_file({key: training.state[key] for key in sorted(frozen)}, folder / "frozen.safetensors")


def _with_weights_as_inputs(model: onnx.ModelProto, order: list[str], state: dict[str, np.ndarray]) -> onnx.ModelProto:
    """EvalStep hands in every weight after the other inputs, in the order of the training graph."""
    kept = [constant for constant in model.graph.initializer if constant.name not in order]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.input.extend(onnx.helper.make_tensor_value_info(key, FLOAT, state[key].shape) for key in order)
    return model


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

    gradients.register()
    assert onnx.__version__.startswith("1.16."), "the gradient builder was tried with onnx 1.16"
    return artifacts

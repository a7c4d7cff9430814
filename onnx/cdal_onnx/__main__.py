"""Command line of cdal_onnx: bundles, training artifacts, runtime libraries."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import __version__
from .errors import Refused


def main() -> int:
    parser = argparse.ArgumentParser(prog="cdal_onnx", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    export = commands.add_parser("export", help="write a model bundle from a checkpoint")
    export.add_argument("--checkpoint", required=True, type=Path, help=".safetensors or .pth")
    _network(export)
    export.add_argument("--name", help="default: the preset's")
    export.add_argument("--model-version", default="1.0.0")
    export.add_argument("--weights", default="imported checkpoint", help="where the weights come from")
    export.add_argument("--data", default="not stated", help="what they were trained on")
    export.add_argument("--licence", default="not stated; ask whoever gave you the checkpoint")
    export.add_argument("--half-weights", action="store_true", help="store weights as float16; arithmetic stays float32")
    export.add_argument("--notes", type=Path, help="Markdown to add to the model card")
    export.add_argument("--out", required=True, type=Path)

    artifacts = commands.add_parser("artifacts", help="write the graphs that `cdal train` runs")
    _network(artifacts)
    artifacts.add_argument("--checkpoint", type=Path, help="first weights; without it they are drawn")
    artifacts.add_argument("--seed", type=int, default=0, help="of the first weights")
    artifacts.add_argument("--betas", type=float, nargs=2, default=(0.5, 0.9), help="of Adam")
    artifacts.add_argument("--freeze", action="append", default=[], metavar="PATTERN",
                           help="published names that are not trained, such as 'all_modules.3.*'; may be repeated")
    artifacts.add_argument("--epsilon", type=float, default=1e-8,
                           help="of Adam; with one that dwarfs the gradients and betas 0 0 it is plain gradient descent")
    artifacts.add_argument("--adversary", action="store_true", help="with the discriminator's session as well")
    artifacts.add_argument("--adversary-betas", type=float, nargs=2, default=(0.5, 0.9), help="of its Adam")
    artifacts.add_argument("--adversary-checkpoint", type=Path, help="its first weights; without it they are drawn")
    artifacts.add_argument("--adversarial-term", action="store_true", help="the generator's loss sees the discriminator")
    artifacts.add_argument("--standard-operators", action="store_true",
                           help="spell the graphs by ONNX's own operators alone; what training is measured against")
    artifacts.add_argument("--out", required=True, type=Path)

    weights = commands.add_parser("weights", help="recover the weights of a bundle from its graphs")
    weights.add_argument("--bundle", required=True, type=Path)
    weights.add_argument("--parameters", required=True, type=Path, help="parameters.json of the network")
    weights.add_argument("--out", required=True, type=Path, help="a .safetensors file")

    literal = commands.add_parser("literal", help="write the unsplit generator, the benchmarks' yardstick")
    literal.add_argument("--checkpoint", type=Path, help="without it the weights are drawn")
    literal.add_argument("--parameters", required=True, type=Path, help="parameters.json of the network")
    literal.add_argument("--out", required=True, type=Path, help="an .onnx file")

    initial = commands.add_parser("initial", help="write drawn weights of an untrained generator")
    initial.add_argument("--parameters", required=True, type=Path, help="parameters.json of the network")
    initial.add_argument("--seed", type=int, default=0)
    initial.add_argument("--scale", action="append", default=[], metavar="KEY=FACTOR", help="enlarge one of the tensors; repeatable")
    initial.add_argument("--out", required=True, type=Path, help="a .safetensors file")

    quantize = commands.add_parser("quantize", help="copy a bundle with a denoiser of lower precision beside the canonical one")
    quantize.add_argument("--bundle", required=True, type=Path)
    quantize.add_argument("--precision", choices=("int8", "fp16"), default="int8", help="fp16 is for GPUs")
    quantize.add_argument("--crops", required=True, type=Path,
                          help="calibration images as the network sees them, from `cdal bundle crops`")
    quantize.add_argument("--votes", type=int, help="of the masks that are compared; default: the bundle's")
    quantize.add_argument("--least-dice", type=float, default=0.99, help="against float32's masks, or nothing is written")
    quantize.add_argument("--out", required=True, type=Path)

    runtime = commands.add_parser("runtime", help="fetch and check the runtime libraries")
    runtime.add_argument("--out", type=Path, default=Path(".runtime"))

    arguments = parser.parse_args()
    try:
        return {"export": _export, "artifacts": _artifacts, "weights": _weights, "literal": _literal, "initial": _initial,
                "quantize": _quantize, "runtime": _runtime}[arguments.command](arguments)
    except Refused as refused:
        print(f"cdal_onnx: {refused}", file=sys.stderr)
        return 1


def _network(parser: argparse.ArgumentParser) -> None:
    from .export import preset_names

    parser.add_argument("--parameters", required=True, type=Path, help="parameters.json of the network")
    parser.add_argument("--preset", required=True, choices=preset_names())


def _export(a: argparse.Namespace) -> int:
    from . import export, parameters, weights

    card = export.Card(a.name or a.preset, a.model_version, a.weights, a.data, a.licence,
                       a.notes.read_text() if a.notes else "")
    export.write(weights.load(a.checkpoint), parameters.load(a.parameters), a.preset, card, a.out, a.half_weights)
    print(a.out)
    return 0


def _artifacts(a: argparse.Namespace) -> int:
    from . import artifacts, export, graph, parameters, weights

    p = parameters.load(a.parameters)
    dialect = graph.TrainingGraph if a.standard_operators else graph.FusedTrainingGraph
    export.refuse_misfit(a.preset, p)
    if not a.adversary and (a.adversary_checkpoint or a.adversarial_term):
        raise Refused("--adversary-checkpoint and --adversarial-term need --adversary")
    loaded = [weights.load(path) if path else {} for path in (a.checkpoint, a.adversary_checkpoint)]
    its_adam = artifacts.Adam(tuple(a.adversary_betas), a.epsilon)
    adversary = artifacts.Adversary(loaded[1], its_adam, a.adversarial_term) if a.adversary else None
    recipe = export.recipe(a.preset, p, export.Card(a.preset, "0.0.0", "", "", ""))
    artifacts.write(p, loaded[0], a.out, a.seed, artifacts.Adam(tuple(a.betas), a.epsilon), recipe, adversary,
                    a.freeze, dialect)
    print(a.out)
    return 0


def _weights(a: argparse.Namespace) -> int:
    from safetensors.numpy import save_file

    from . import parameters, recover

    save_file(recover.weights(a.bundle, parameters.load(a.parameters)), a.out)
    print(a.out)
    return 0


def _literal(a: argparse.Namespace) -> int:
    from . import literal, parameters, weights

    literal.write(parameters.load(a.parameters), weights.load(a.checkpoint) if a.checkpoint else {}, a.out)
    print(a.out)
    return 0


def _initial(a: argparse.Namespace) -> int:
    import numpy as np
    from safetensors.numpy import save_file

    from . import generator, graph, initial, parameters

    drawn = generator.generator_graph(graph.InferenceGraph({}, initial.initialiser(a.seed)), parameters.load(a.parameters))
    for key, factor in (item.split("=") for item in a.scale):
        if key not in drawn.state:
            raise Refused(f"--scale {key}={factor}: the network has no tensor of that name")
        drawn.state[key] = drawn.state[key] * np.float32(factor)
    save_file(drawn.state, a.out)
    print(a.out)
    return 0


def _quantize(a: argparse.Namespace) -> int:
    from safetensors.numpy import load_file

    from . import variants

    crops = load_file(a.crops)
    if "image" not in crops:
        raise Refused(f"{a.crops}: holds no tensor `image`; make it with `cdal bundle crops`")
    dice = variants.write(a.bundle, a.precision, crops["image"], a.votes, a.least_dice, a.out)
    print(f"{a.out}: Dice {dice:.4f} with float32's masks on {len(crops['image'])} images")
    return 0


def _runtime(a: argparse.Namespace) -> int:
    from . import runtime

    runtime.set_up(a.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

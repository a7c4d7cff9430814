"""The operators of the domain `cdal` in training graphs, by the functions that define them: what a runtime without their
kernels runs gives the losses and gradients of ONNX's own operators."""

import sys
import unittest
from pathlib import Path

import numpy as np
import onnx

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "onnx"))

from cdal_onnx import artifacts, gradients, parameters, weights  # noqa: E402
from cdal_onnx.graph import FLOAT, FusedTrainingGraph, TrainingGraph  # noqa: E402

REFERENCE = ROOT / "tests/reference"


def differentiated(graph: TrainingGraph) -> onnx.ModelProto:
    """The training graph of a network, with its gradients as outputs."""
    module = artifacts._artifacts_module()
    from onnxruntime.training.onnxblock import _training_graph_utils as utils

    model = module.onnx.shape_inference.infer_shapes(graph.model("test"))
    trained = {key for key in graph.used if key in graph.initializers}
    model, _ = utils.build_gradient_graph(model, trained, set(), [output.name for output in graph.outputs])
    gradients.complete(model)
    return model


def run(graph: TrainingGraph, feeds: dict) -> dict:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    model = differentiated(graph)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    given = {value.name: feeds.get(value.name, graph.state.get(value.name)) for value in session.get_inputs()}
    return dict(zip(names, session.run(names, given)))


class Dialects(unittest.TestCase):
    def compare(self, build, feeds: dict, what: str) -> None:
        found, wanted = (run(build(dialect), feeds) for dialect in (FusedTrainingGraph, TrainingGraph))
        self.assertEqual(set(found), set(wanted))
        largest = max(np.linalg.norm(value) for name, value in wanted.items() if name.endswith("_grad"))
        for name, value in wanted.items():
            off = np.linalg.norm(found[name] - value) / max(np.linalg.norm(value), 1e-4 * largest)
            self.assertLess(off, 1e-3, f"{what}: {name}")

    def inputs(self, p, names: dict) -> dict:
        random = np.random.default_rng(3)
        batch, size = 4, p.image_size
        maps = lambda channels: random.standard_normal((batch, channels, size, size), np.float32)  # noqa: E731
        feeds = {name: maps(channels) for name, channels in names.items()}
        return feeds | {"t": np.arange(batch, dtype=np.int64) % p.num_timesteps,
                        "z": random.standard_normal((batch, p.nz), np.float32)}

    def test_generators_learn_the_same(self):
        for model in ("hippocampus", "nuclei"):
            p = parameters.load(REFERENCE / f"{model}_small/parameters.json")
            state = weights.load(REFERENCE / f"{model}_small/generator.safetensors")
            feeds = self.inputs(p, {"x": p.num_channels, "image": p.image_channels, "target": p.num_channels})
            self.compare(lambda dialect: artifacts.generator_training_graph(p, state, 0, dialect=dialect), feeds, model)

    def test_discriminators_learn_the_same_under_the_exact_penalty(self):
        for model in ("hippocampus", "lung"):
            p = parameters.load(REFERENCE / f"{model}_small/parameters.json")
            state = weights.load(REFERENCE / f"{model}_small/discriminator.safetensors")
            feeds = self.inputs(p, dict.fromkeys(("x_t", "x_tp1", "x_pos"), p.num_channels))
            for weight in (0.0, 1e3):
                feeds["r1_weight"] = np.float32([weight])
                self.compare(lambda dialect: artifacts.discriminator_training_graph(p, state, 0, dialect), feeds,
                             f"{model}, R1 weighted {weight}")


if __name__ == "__main__":
    unittest.main()

"""The ONNX graphs against recorded inputs and outputs of the published model, and what is refused."""

import json
import pickle
import sys
import tempfile
import types
import unittest
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "onnx"))

from cdal_onnx import parameters, weights  # noqa: E402
from cdal_onnx.discriminator import discriminator_graph  # noqa: E402
from cdal_onnx.errors import Refused  # noqa: E402
from cdal_onnx.generator import condition_graph, denoiser_graph, generator_graph  # noqa: E402
from cdal_onnx.graph import FLOAT, FusedGraph, InferenceGraph, Map, TrainingGraph  # noqa: E402
from cdal_onnx.literal import LiteralGraph  # noqa: E402

onnxruntime.set_default_logger_severity(3)
DIALECTS = (InferenceGraph, FusedGraph, TrainingGraph, LiteralGraph)
MODELS = ("hippocampus_small", "lung_small", "nuclei_small")


def reference(model: str, file: str) -> Path | None:
    for folder in (ROOT / "tests/reference", ROOT.parent / "shared/reference"):
        if (folder / model / file).exists():
            return folder / model / file
    print(f"left out: {model}/{file} is neither in tests/reference nor in ../shared/reference", file=sys.stderr)
    return None


def session(graph) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph.model("test").SerializeToString())


class Generators(unittest.TestCase):
    def test_forward_agrees_in_every_dialect_split_and_whole(self):
        for model in MODELS:
            files = [reference(model, f) for f in ("generator.safetensors", "forward.safetensors")]
            if None in files:
                continue
            p = parameters.load(reference(model, "parameters.json"))
            state, recorded = weights.load(files[0]), load_file(files[1])
            for dialect in DIALECTS:
                condition = session(condition_graph(dialect(state), p)).run(None, {"image": recorded["y"]})[0]
                denoiser = session(denoiser_graph(dialect(state), p))
                whole = session(generator_graph(dialect(state), p))
                for step in range(p.num_timesteps):
                    given = {"x": recorded["x"], "z": recorded["z"], "t": np.full(len(recorded["x"]), step)}
                    expected = recorded[f"x0_t{step}"]
                    split = denoiser.run(None, given | {"condition": condition})[0]
                    unsplit = whole.run(None, given | {"image": recorded["y"]})[0]
                    self.assertLess(abs(split - expected).max(), 1e-4, (model, dialect, step))
                    self.assertLess(abs(unsplit - expected).max(), 1e-4, (model, dialect, step))

    def test_half_weights_halve_the_file_and_hardly_move_the_result(self):
        model = "hippocampus_small"
        p = parameters.load(reference(model, "parameters.json"))
        state = weights.load(reference(model, "generator.safetensors"))
        recorded = load_file(reference(model, "forward.safetensors"))
        half = generator_graph(InferenceGraph(state, half_weights=True), p)
        size = len(half.model("half").SerializeToString())
        whole = len(generator_graph(InferenceGraph(state), p).model("whole").SerializeToString())
        self.assertLess(size / whole, 0.6)
        given = {"x": recorded["x"], "z": recorded["z"], "t": np.zeros(len(recorded["x"]), np.int64),
                 "image": recorded["y"]}
        self.assertLess(abs(session(half).run(None, given)[0] - recorded["x0_t0"]).max(), 2e-3)

    def test_one_condition_serves_a_batch(self):
        model = "hippocampus_small"
        p = parameters.load(reference(model, "parameters.json"))
        state = weights.load(reference(model, "generator.safetensors"))
        recorded = load_file(reference(model, "forward.safetensors"))
        image = recorded["y"][:1]
        condition = session(condition_graph(InferenceGraph(state), p)).run(None, {"image": image})[0]
        denoiser = session(denoiser_graph(InferenceGraph(state), p))
        given = {"x": recorded["x"], "z": recorded["z"], "t": np.zeros(len(recorded["x"]), np.int64)}
        shared = denoiser.run(None, given | {"condition": condition})[0]
        repeated = denoiser.run(None, given | {"condition": np.repeat(condition, len(recorded["x"]), 0)})[0]
        np.testing.assert_array_equal(shared, repeated)


class Discriminators(unittest.TestCase):
    def test_logits_and_attention_agree_in_both_dialects(self):
        for model in MODELS:
            p = parameters.load(reference(model, "parameters.json"))
            state = weights.load(reference(model, "discriminator.safetensors"))
            recorded = load_file(reference(model, "discriminator_step.safetensors"))
            for dialect in (InferenceGraph, TrainingGraph):
                graph = discriminator_graph(dialect(state), p)
                graph.refuse_unused(model)
                run = session(graph).run
                given = {"t": recorded["t"].astype(np.int64), "x_tp1": recorded["x_tp1"]}
                for pair, kind in (("x_t", "real"), ("x_fake", "fake")):
                    logits, attention = run(["logits", "attention"], given | {"x_t": recorded[pair]})
                    expected = recorded[f"logits_{kind}"].ravel()
                    self.assertLess(abs(logits.ravel() / expected - 1).max(), 1e-4, (model, kind))
                    if kind == "real":
                        scale = abs(recorded["attention"]).max()
                        self.assertLess(abs(attention - recorded["attention"]).max() / scale, 1e-4, model)


class Fir(unittest.TestCase):
    """Every spelling of the FIR against its definition: insert zeros, pad, correlate, keep every second."""

    @staticmethod
    def defined(x, kernel, up, down, pads):
        n, c, h, w = x.shape
        full = np.zeros((n, c, h * up, w * up))
        full[:, :, ::up, ::up] = x
        full = np.pad(full, ((0, 0), (0, 0), pads, pads))
        k = np.outer(kernel, kernel) * up**2
        windows = np.lib.stride_tricks.sliding_window_view(full, k.shape, axis=(2, 3))
        return np.einsum("nchwij,ij->nchw", windows, k)[:, :, ::down, ::down]

    def test_all_kernels_and_dialects(self):
        x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
        for taps in ([1, 1], [1, 2, 1], [1, 3, 3, 1], [1, 4, 6, 4, 1]):
            kernel = np.asarray(taps, float) / sum(taps)
            p = len(taps) - 2
            words = {
                "fir_down": self.defined(x, kernel, 1, 2, ((p + 1) // 2, p // 2)),
                "fir_up": self.defined(x, kernel, 2, 1, ((p + 1) // 2 + 1, p // 2)),
                "fir_blur": self.defined(x, kernel, 1, 1, ((p + 3) // 2, (p + 2) // 2)),
            }
            for word, expected in words.items():
                for dialect in DIALECTS:
                    graph = dialect({})
                    graph.add_input("x", FLOAT, ["N", 3, 8, 8])
                    y = getattr(graph, word)(Map("x", 3, 8), kernel)
                    graph.add_output(y.name, "y", FLOAT, ["N", 3, y.size, y.size])
                    found = session(graph).run(None, {"x": x})[0]
                    self.assertEqual(found.shape, expected.shape, (word, taps, dialect))
                    np.testing.assert_allclose(found, expected, atol=2e-6, err_msg=f"{word} {taps} {dialect}")


class Refusals(unittest.TestCase):
    def test_every_unsupported_parameter_is_named_with_its_value(self):
        raw = json.loads(reference("hippocampus_small", "parameters.json").read_text())
        for key, value in {
            "embedding_type": "fourier", "conditional": False, "resblock_type": "ddpm", "fir": False,
            "resamp_with_conv": False, "skip_rescale": False, "progressive": "output_skip",
            "progressive_input": "none", "progressive_combine": "cat", "centered": False, "dataset": "brats",
            "fir_kernel": [1, 2, 3], "num_channels_dae": 48, "image_size": 33, "ch_mult": [], "nz": 0,
            "use_geometric": "yes", "num_timesteps": True,
        }.items():
            with self.assertRaisesRegex(Refused, f"{key} = ", msg=key) as caught:
                parameters.parse(raw | {key: value})
            shown = json.dumps([float(v) for v in value] if key == "fir_kernel" else value)
            self.assertIn(shown, str(caught.exception))

    def test_all_faults_are_told_at_once(self):
        raw = json.loads(reference("hippocampus_small", "parameters.json").read_text())
        with self.assertRaises(Refused) as caught:
            parameters.parse(raw | {"fir": False, "nz": -1})
        self.assertIn("fir", str(caught.exception))
        self.assertIn("nz", str(caught.exception))

    def test_a_checkpoint_of_another_network_is_refused_by_tensor(self):
        model = "hippocampus_small"
        raw = json.loads(reference(model, "parameters.json").read_text())
        state = weights.load(reference(model, "generator.safetensors"))
        with self.assertRaisesRegex(Refused, "all_modules"):
            denoiser_graph(InferenceGraph(state), parameters.parse(raw | {"ch_mult": [1, 2, 2]}))


class _Tensor:
    """Stands for a tensor while a checkpoint is pickled the way torch does it."""

    def __init__(self, array):
        self.array = array


class Pth(unittest.TestCase):
    def write(self, path, state):
        torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
        rebuild = lambda *a: None  # noqa: E731
        rebuild.__module__, rebuild.__qualname__, rebuild.__name__ = ("torch._utils", *["_rebuild_tensor_v2"] * 2)
        utils._rebuild_tensor_v2 = rebuild
        storage = type("FloatStorage", (), {"__module__": "torch"})
        torch.FloatStorage, torch._utils = storage, utils
        stored = {}

        class Pickler(pickle.Pickler):
            def persistent_id(self, thing):
                return thing if isinstance(thing, tuple) and thing and thing[0] == "storage" else None

            def reducer_override(self, thing):
                if not isinstance(thing, _Tensor):
                    return NotImplemented
                key = str(len(stored))
                stored[key] = np.ascontiguousarray(thing.array)
                strides = tuple(s // 4 for s in stored[key].strides)
                place = ("storage", storage, key, "cpu", thing.array.size)
                return rebuild, (place, 0, thing.array.shape, strides, False, {})

        sys.modules.update({"torch": torch, "torch._utils": utils})
        try:
            with zipfile.ZipFile(path, "w") as archive, tempfile.TemporaryFile() as stream:
                Pickler(stream, 2).dump(state)
                stream.seek(0)
                archive.writestr("model/data.pkl", stream.read())
                for key, array in stored.items():
                    archive.writestr(f"model/data/{key}", array.tobytes())
        finally:
            del sys.modules["torch"], sys.modules["torch._utils"]

    def test_tensors_come_out_and_the_prefix_goes(self):
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "w.pth"
            self.write(path, {"module.a": _Tensor(array), "epoch": 3})
            state = weights.load(path)
        self.assertEqual(list(state), ["a"])
        np.testing.assert_array_equal(state["a"], array)

    def test_anything_but_tensors_is_refused_and_not_run(self):
        class Evil:
            def __reduce__(self):
                return exec, ("raise SystemExit('ran')",)

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "w.pth"
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("model/data.pkl", pickle.dumps({"a": Evil()}))
            with self.assertRaisesRegex(Refused, "exec"):
                weights.load(path)

    def test_nan_and_truncation_are_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "w.pth"
            self.write(path, {"a": _Tensor(np.float32([np.nan]))})
            with self.assertRaisesRegex(Refused, "NaN"):
                weights.load(path)
            path.write_bytes(path.read_bytes()[:40])
            with self.assertRaisesRegex(Refused, "not a zip"):
                weights.load(path)


if __name__ == "__main__":
    unittest.main()

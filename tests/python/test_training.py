"""What tuning needs: weights recovered from a bundle's graphs, and layers named to be kept."""

import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "onnx"))

from cdal_onnx import parameters, recover, weights  # noqa: E402
from cdal_onnx.artifacts import frozen_keys  # noqa: E402
from cdal_onnx.errors import Refused  # noqa: E402
from cdal_onnx.graph import InferenceGraph  # noqa: E402

REFERENCE = ROOT / "tests/reference"


def export(folder: Path, state: dict, p: parameters.Parameters, **options) -> None:
    for name, build in recover.GRAPHS.items():
        onnx.save(build(InferenceGraph(state, **options), p).model("test"), folder / name)


class Recovery(unittest.TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.p = parameters.load(REFERENCE / "hippocampus_small/parameters.json")
        self.state = weights.load(REFERENCE / "hippocampus_small/generator.safetensors")

    def test_weights_come_back_bit_for_bit(self):
        for model in ("hippocampus_small", "nuclei_small"):
            p = parameters.load(REFERENCE / model / "parameters.json")
            state = weights.load(REFERENCE / model / "generator.safetensors")
            export(self.folder, state, p)
            found = recover.weights(self.folder, p)
            self.assertEqual(set(found), set(state))
            for key, value in state.items():
                np.testing.assert_array_equal(found[key], value, key)

    def test_halved_weights_come_back_as_they_are_computed_with(self):
        export(self.folder, self.state, self.p, half_weights=True)
        found = recover.weights(self.folder, self.p)
        key = "all_modules.2.weight"
        np.testing.assert_array_equal(found[key], self.state[key].astype(np.float16).astype(np.float32))

    def test_parameters_of_another_network_and_other_constants_are_refused(self):
        export(self.folder, self.state, self.p)
        other = parameters.load(REFERENCE / "nuclei_small/parameters.json")
        with self.assertRaisesRegex(Refused, "own parameters"):
            recover.weights(self.folder, other)
        path = self.folder / "denoiser.onnx"
        model = onnx.load(path)
        for constant in model.graph.initializer:
            if constant.name == "time_sinusoid":
                constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant) + 1, constant.name))
        onnx.save(model, path)
        with self.assertRaisesRegex(Refused, "'time_sinusoid' is not what export makes"):
            recover.weights(self.folder, self.p)
        path.write_bytes(b"no graph")
        with self.assertRaisesRegex(Refused, "not a readable graph"):
            recover.weights(self.folder, self.p)


class Freezing(unittest.TestCase):
    KEYS = {"all_modules.0.weight", "all_modules.0.bias", "all_modules.10.weight", "z_transform.1.weight"}

    def test_patterns_choose_names(self):
        self.assertEqual(frozen_keys(self.KEYS, []), set())
        self.assertEqual(frozen_keys(self.KEYS, ["all_modules.0.*"]), {"all_modules.0.weight", "all_modules.0.bias"})

    def test_patterns_that_match_nothing_or_leave_nothing_are_refused(self):
        with self.assertRaisesRegex(Refused, "named like 'all_modules.9.*'"):
            frozen_keys(self.KEYS, ["z_transform.*", "all_modules.9.*"])
        with self.assertRaisesRegex(Refused, "nothing to train"):
            frozen_keys(self.KEYS, ["*"])


if __name__ == "__main__":
    unittest.main()

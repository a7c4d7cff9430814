"""`cdal segment` against the method in numpy: pre- and postprocessing, schedule, sampler and votes written
again from the published description, around the same two graphs run by ONNX Runtime's Python module."""

import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import nibabel
import numpy as np
import onnxruntime
from PIL import Image
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "onnx"))

from cdal_onnx import export, parameters, weights  # noqa: E402
from cdal_onnx.generator import condition_graph, denoiser_graph  # noqa: E402
from cdal_onnx.graph import InferenceGraph  # noqa: E402

onnxruntime.set_default_logger_severity(3)
# A voxel whose mean of votes is this near to one half may fall to either side.
NEAR = 1e-4
NUCLEI_MEAN, NUCLEI_STD = (142.07, 98.48, 132.96), (65.78, 57.05, 57.78)


def binary() -> Path | None:
    named = os.environ.get("CDAL_BINARY")
    if named:
        return Path(named)
    built = [ROOT / "target" / profile / "cdal" for profile in ("debug", "release")]
    return max((path for path in built if path.exists()), key=lambda path: path.stat().st_mtime, default=None)


def reference(model: str, file: str) -> Path | None:
    for folder in (ROOT / "tests/reference", ROOT.parent / "shared/reference"):
        if (folder / model / file).exists():
            return folder / model / file
    return None


def random_state(p: parameters.Parameters, seed: int) -> dict[str, np.ndarray]:
    """Weights of a network that was never trained but whose layers all matter."""
    random = np.random.default_rng(seed)

    def initial(key: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = random.standard_normal(shape)
        if key.endswith(".style.bias"):
            gamma, beta = np.split(0.2 * noise, 2)
            return np.concatenate([1 + gamma, beta]).astype(np.float32)
        if len(shape) == 1:
            return (0.2 * noise + (not key.endswith((".bias", ".b")))).astype(np.float32)
        fan_in = shape[0] if key.endswith(".W") else int(np.prod(shape[1:]))
        return (1.2 * noise / np.sqrt(fan_in)).astype(np.float32)

    graph = InferenceGraph({}, initial)
    condition_graph(graph, p)
    denoiser_graph(graph, p)
    return graph.state


class Model:
    """A bundle, and the sampler with recorded noise over its graphs."""

    def __init__(self, folder: Path, p: parameters.Parameters, votes: int, seed: int = 5):
        self.folder, self.p, self.votes = folder, p, votes
        self.sessions = [onnxruntime.InferenceSession(str(folder / f"{name}.onnx"))
                         for name in ("condition", "denoiser")]
        random = np.random.default_rng(seed)
        shape = (votes, p.num_channels, p.image_size, p.image_size)
        self.noise = {
            "x_init": random.standard_normal(shape, np.float32),
            "z": random.standard_normal((p.num_timesteps, votes, p.nz), np.float32),
            "noise": random.standard_normal((p.num_timesteps, *shape), np.float32),
        }
        self.noise_file = folder.parent / f"{folder.name}-{votes}.noise.safetensors"
        save_file(self.noise, self.noise_file)

    def mean_of_votes(self, image: np.ndarray, votes: int | None = None) -> np.ndarray:
        """[L, H, W] in [0, 1] for a normalised image [C, H, W]."""
        p, votes = self.p, votes or self.votes
        condition, denoiser = self.sessions
        features = condition.run(None, {"image": np.ascontiguousarray(image[None], np.float32)})[0]
        total = 0.0
        for vote in range(votes):
            x = self.noise["x_init"][vote : vote + 1]
            for i, (beta, before, now) in reversed(list(enumerate(posterior_terms(p)))):
                z = self.noise["z"][i, vote : vote + 1]
                x0 = denoiser.run(None, {"x": x, "t": np.int64([i]), "condition": features, "z": z})[0]
                mean = (beta * np.sqrt(before) / (1 - now) * x0
                        + (1 - before) * np.sqrt(1 - beta) / (1 - now) * x)
                logarithm = np.log(max(beta * (1 - before) / (1 - now), 1e-20))
                noise = self.noise["noise"][i, vote : vote + 1] if i else 0.0
                x = np.float32(mean + np.exp(0.5 * logarithm) * noise)
            total = total + np.clip((np.float64(x[0]) + 1) / 2, 0, 1)
        return total / votes


def posterior_terms(p: parameters.Parameters) -> list[tuple[float, float, float]]:
    """(beta, cumulative alpha before, cumulative alpha) of each time-step."""
    times = [k / p.num_timesteps * (1 - 1e-3) + 1e-3 for k in range(p.num_timesteps + 1)]
    span = p.beta_max - p.beta_min
    alpha_bar = [np.exp(2 * (-0.25 * t * t * span - 0.5 * t * p.beta_min)) for t in times]
    betas = [1 - after / before for before, after in zip(alpha_bar, alpha_bar[1:])]
    cumulative = np.cumprod([1 - beta for beta in betas])
    return list(zip(betas, [1.0, *cumulative], cumulative))


def resize(planes: np.ndarray, size: int) -> np.ndarray:
    """[C, H, W] to [C, size, size] as Pillow does it: bilinear, antialiased where it shrinks."""
    def one(plane):
        return np.asarray(Image.fromarray(np.float32(plane), "F").resize((size, size), Image.BILINEAR))
    return np.stack([one(plane) for plane in planes])


def nearest(plane: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[h, w] to `shape`: each pixel takes what its centre falls on, in exact arithmetic."""
    rows, columns = ((2 * np.arange(n) + 1) * old // (2 * n) for n, old in zip(shape, plane.shape))
    return np.uint8(plane)[rows[:, None], columns]


def segment_lung(model: Model, pixels: np.ndarray, white: float, votes=None):
    """Mask and doubtful pixels for an image [H, W] or [H, W, 3]."""
    grey = pixels.mean(axis=2) if pixels.ndim == 3 else pixels.astype(float)
    image = resize((grey / white * 2 - 1)[None], model.p.image_size)
    mean = model.mean_of_votes(image, votes)[0]
    # The label's polarity is inverted: -1 is lung.
    mask = 1 - np.round(mean)
    return nearest(mask, grey.shape), nearest(abs(mean - 0.5) <= NEAR, grey.shape)


def segment_nuclei(model: Model, pixels: np.ndarray, votes=None):
    size = model.p.image_size
    standard = (np.moveaxis(pixels.astype(float), 2, 0) - np.reshape(NUCLEI_MEAN, (3, 1, 1)))
    image = resize(standard / np.reshape(NUCLEI_STD, (3, 1, 1)), 2 * size)
    mean = np.zeros((2 * size, 2 * size))
    for row in (0, size):
        for column in (0, size):
            window = slice(row, row + size), slice(column, column + size)
            mean[window] = model.mean_of_votes(image[:, window[0], window[1]], votes)[0]
    shape = pixels.shape[:2]
    return nearest(np.round(mean), shape), nearest(abs(mean - 0.5) <= NEAR, shape)


def segment_hippocampus(model: Model, voxels: np.ndarray, affine: np.ndarray, votes=None):
    """Mask and doubtful voxels for voxels [i, j, k] with an affine to RAS."""
    size, depth = model.p.image_size, 32
    own = nibabel.io_orientation(affine)
    # Slices downwards, rows to the left, columns to the back.
    wanted = nibabel.orientations.axcodes2ornt(("I", "L", "P"))
    there = nibabel.orientations.ornt_transform(own, wanted)
    volume = nibabel.orientations.apply_orientation(voxels.astype(float), there)
    low, high = volume.min(), volume.max()
    volume = (volume - low) / (high - low) * 2 - 1

    windows = (depth, size, size)
    missing = [max(w - n, 0) for w, n in zip(windows, volume.shape)]
    padding = [(m // 2, m - m // 2) for m in missing]
    padded = np.pad(volume, padding, constant_values=-1.0)
    starts = []
    for n, w in zip(padded.shape, windows):
        count = -(-(n - w) // (w // 4)) + 1
        starts.append(sorted({min(k * (w // 4), n - w) for k in range(count)}))

    channels = model.p.num_channels
    votes_for, covered = np.zeros((channels, *padded.shape)), np.zeros(padded.shape)
    doubtful = np.zeros(padded.shape, bool)
    known = {}
    real = range(padding[0][0], padding[0][0] + volume.shape[0])
    for first in starts[0]:
        for row in starts[1]:
            for column in starts[2]:
                for k in range(first, first + depth):
                    if k not in real:
                        continue
                    at = (k, slice(row, row + size), slice(column, column + size))
                    # Recorded noise is the same in every window: so is the mean.
                    key = (k, row, column)
                    if key not in known:
                        known[key] = model.mean_of_votes(padded[at][None], votes)
                    mean = known[key]
                    votes_for[(slice(None), *at)] += np.round(mean)
                    covered[at] += 1
                    doubtful[at] |= (abs(mean - 0.5) <= NEAR).any(axis=0)
    inner = tuple(slice(before, before + n) for (before, _), n in zip(padding, volume.shape))
    share = votes_for[(slice(None), *inner)] / covered[inner]
    back = nibabel.orientations.ornt_transform(wanted, own)
    return tuple(nibabel.orientations.apply_orientation(result, back)
                 for result in (share.argmax(axis=0).astype(np.uint8), doubtful[inner].astype(np.uint8)))


def smooth(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A picture with structure and noise, in [0, 1]."""
    random = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    waves = sum(np.sin(random.uniform(2, 7) * axis + random.uniform(0, 6)) for axis in axes)
    picture = waves + 0.4 * random.standard_normal(shape)
    return (picture - picture.min()) / np.ptp(picture)


class Segment(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.binary = binary()
        if cls.binary is None:
            print("left out: no cdal binary; build it or set CDAL_BINARY", file=sys.stderr)
            raise unittest.SkipTest("no cdal binary")
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        cls.models = {}

    def model(self, preset: str, votes: int = 2) -> Model:
        """The small reference model of a preset, with drawn weights where its own are not at hand."""
        if (preset, votes) not in self.models:
            name = f"{preset}_small"
            p = parameters.load(reference(name, "parameters.json"))
            checkpoint = reference(name, "generator.safetensors") if preset != "lung" else None
            state = weights.load(checkpoint) if checkpoint else random_state(p, 3)
            out = self.folder / f"{preset}-{votes}"
            export.write(state, p, preset, export.Card(preset, "1.0.0", "random", "none", "none"), out)
            # The published pipeline shows every voxel as it is, whatever its size; so does a bundle without a spacing.
            manifest = out / "bundle.toml"
            lines = manifest.read_text().splitlines(keepends=True)
            manifest.write_text("".join(line for line in lines if not line.startswith("spacing = ")))
            self.models[preset, votes] = Model(out, p, votes)
        return self.models[preset, votes]

    def cdal(self, model: Model, *arguments) -> list[dict]:
        out = tempfile.mkdtemp(dir=self.folder)
        command = [self.binary, "segment", "--bundle", model.folder, "--out", out, "--json", *arguments]
        done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def file(self, report: dict, suffix: str) -> str:
        return next(path for path in report["files"] if path.endswith(suffix))

    def agree(self, ours: np.ndarray, expected: np.ndarray, doubtful: np.ndarray, what: str):
        self.assertEqual(ours.shape, expected.shape, what)
        wrong = (ours != expected) & (doubtful == 0)
        self.assertEqual(int(wrong.sum()), 0, f"{what}: of {ours.size}, first at {np.argwhere(wrong)[:3]}")
        self.assertLess(doubtful.mean(), 0.02, what)
        counts = np.bincount(expected.ravel().astype(int))
        self.assertGreater(sorted(counts)[-2], 0.02 * ours.size, f"{what}: the masks say nothing: {counts}")

    def test_lung_from_8_and_16_bits_and_from_colour(self):
        model = self.model("lung", 3)
        grey = smooth((91, 74), 1)
        colour = np.stack([smooth((50, 41), seed) for seed in (2, 3, 4)], axis=2)
        exact = smooth((64, 64), 6)
        images = {
            "grey8": (np.uint8(grey * 255), 255),
            "grey16": (np.uint16(grey * 65535), 65535),
            "colour": (np.uint8(colour * 255), 255),
            "exact": (np.uint8(exact * 255), 255),
        }
        for name, (pixels, white) in images.items():
            path = self.folder / f"{name}.png"
            Image.fromarray(pixels).save(path)
            report, = self.cdal(model, "--noise", model.noise_file, path)
            ours = np.asarray(Image.open(self.file(report, ".mask.png")))
            self.assertLessEqual(set(np.unique(ours)), {0, 255})
            expected, doubtful = segment_lung(model, pixels, white)
            self.agree(ours // 255, expected, doubtful, f"lung {name}")
            self.assertEqual(report["votes"], 3)
            self.assertEqual(report["voxels"], [int((ours > 0).sum())])

    def test_nuclei_in_four_tiles(self):
        model = self.model("nuclei")
        for shape in ((151, 137), (128, 128), (90, 260)):
            pixels = np.uint8(np.stack([smooth(shape, seed) for seed in (7, 8, 9)], axis=2) * 255)
            path = self.folder / f"tissue{shape[0]}.png"
            Image.fromarray(pixels).save(path)
            report, = self.cdal(model, "--noise", model.noise_file, path)
            ours = np.asarray(Image.open(self.file(report, ".mask.png"))) // 255
            self.agree(ours, *segment_nuclei(model, pixels), f"nuclei {shape}")

    def test_hippocampus_in_every_orientation_and_window(self):
        model = self.model("hippocampus", 1)
        turned = nibabel.eulerangles.euler2mat(0.2, -0.15, 0.1)
        cases = {  # (i, j, k), directions of i, j, k in RAS
            "ras": ((35, 41, 3), np.diag([1.0, 1, 1])),
            "lpi": ((33, 20, 4), np.diag([-1.0, -1, -1])),
            "sagittal": ((3, 37, 29), np.float64([[0, 0, 1], [-1, 0, 0], [0, 1, 0]])),
            "coronal-oblique": ((34, 2, 43), turned @ np.float64([[1, 0, 0], [0, 0, 1], [0, -1, 0]])),
            "axial-swapped": ((40, 33, 2), np.float64([[0, -1, 0], [1, 0, 0], [0, 0, -1]])),
            "deep": ((9, 17, 33), np.diag([-1.0, 1, 1])),
        }
        for name, (shape, rotation) in cases.items():
            affine = np.eye(4)
            affine[:3, :3] = rotation @ np.diag([1.0, 1.3, 0.8])
            affine[:3, 3] = -30, 12, 7.5
            voxels = np.int16(smooth(shape, len(name)) * 1800 - 300)
            path = self.folder / f"{name}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
            report, = self.cdal(model, "--noise", model.noise_file, path)
            written = nibabel.load(self.file(report, ".nii.gz"))
            np.testing.assert_allclose(written.affine, affine, atol=1e-5)
            ours = np.asarray(written.dataobj)
            self.agree(ours, *segment_hippocampus(model, voxels, affine), f"hippocampus {name}")
            self.assertEqual(report["shape"], list(shape[::-1]))

    def test_a_dicom_series_comes_back_as_a_seg_on_its_grid(self):
        import highdicom
        import pydicom

        model = self.model("hippocampus", 1)
        out = self.folder / "phantom"
        subprocess.run([self.binary, "phantom", "--out", out, "--seed", "12"], check=True, capture_output=True)
        series = next((out / "images").iterdir())
        for number, path in enumerate(sorted(series.iterdir())):
            if not 8 <= number < 12:  # four slices are enough
                path.unlink()
        report, = self.cdal(model, "--noise", model.noise_file, series)
        slices = [pydicom.dcmread(path) for path in series.iterdir()]
        source = highdicom.get_volume_from_series(slices)
        ras = np.diag([-1.0, -1, 1, 1]) @ source.affine
        expected, doubtful = segment_hippocampus(model, source.array, ras)
        seg = highdicom.seg.segread(self.file(report, ".seg.dcm"))
        ours = seg.get_volume(combine_segments=True).match_geometry(source)
        np.testing.assert_allclose(ours.affine, source.affine, atol=1e-4)
        self.agree(ours.array, expected, doubtful, "hippocampus DICOM")

    def test_fewer_votes_use_the_first_of_the_recorded(self):
        model = self.model("lung", 3)
        pixels = np.uint8(smooth((64, 64), 21) * 255)
        path = self.folder / "votes.png"
        Image.fromarray(pixels).save(path)
        masks = []
        for votes in (1, 2, 3):
            report, = self.cdal(model, "--noise", model.noise_file, "--votes", votes, path)
            self.assertEqual(report["votes"], votes)
            masks.append(np.asarray(Image.open(self.file(report, ".mask.png"))) // 255)
            self.agree(masks[-1], *segment_lung(model, pixels, 255, votes), f"{votes} votes")
        self.assertTrue((masks[0] != masks[2]).any())

    def test_the_seed_decides_and_the_threads_do_not(self):
        model = self.model("lung", 3)
        path = self.folder / "seed.png"
        Image.fromarray(np.uint8(smooth((70, 64), 31) * 255)).save(path)

        def files(*arguments):
            report, = self.cdal(model, "--votes", 3, *arguments, path)
            return [Path(file).read_bytes() for file in report["files"]]

        first = files("--seed", 4)
        self.assertEqual(first, files("--seed", 4))
        self.assertNotEqual(first, files("--seed", 5))
        self.assertEqual(files("--seed", 4, "--threads", 1), files("--seed", 4, "--threads", 2))


class Sampler(unittest.TestCase):
    """The yardstick itself against recorded runs of the published model."""

    def test_the_numpy_sampler_reproduces_the_record(self):
        for preset in ("hippocampus", "nuclei"):
            name = f"{preset}_small"
            recorded = load_file(reference(name, "sampler.safetensors"))
            p = parameters.load(reference(name, "parameters.json"))
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / preset
                card = export.Card(preset, "1.0.0", "random", "none", "none")
                export.write(weights.load(reference(name, "generator.safetensors")), p, preset, card, out)
                model = Model(out, p, len(recorded["x_init"]))
            model.noise = {key: recorded[key] for key in ("x_init", "z", "noise")}
            mean = model.mean_of_votes(recorded["image"][0])
            np.testing.assert_allclose(mean, recorded["mean"].reshape(mean.shape), atol=1e-4)


if __name__ == "__main__":
    unittest.main()

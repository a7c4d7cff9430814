"""What another grid costs: labelled volumes, copied to other spacings and turned about each axis, segmented and compared.

    make grids                  # or with arguments: .venv/bin/python tests/grids.py --help

The data is laid out as `cdal eval` takes it (images/, labels/, splits.json with `val`). Each copy is measured against its own
truth on its own grid. The command fails where the mean Dice of a label falls by more than 0.01 with another spacing or by
more than 0.02 with a rotation, or where HD95 grows by more than a fifth.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import nibabel
import numpy as np
from scipy.ndimage import affine_transform

SPACINGS = [(0.5, 0.5, 0.5), (0.7, 0.7, 0.7), (1.4, 1.4, 1.4), (0.7, 0.7, 1.5)]
ANGLES = [5, 10, 25]
MOST = {"spacing": 0.01, "rotation": 0.02}
MOST_HD95 = 1.2


def ways():
    """(name, kind, matrix from the copy's voxels to the source's)."""
    yield "unchanged", None, np.eye(3)
    for spacing in SPACINGS:
        yield " x ".join(f"{s:g}" for s in spacing) + " mm", "spacing", np.diag(spacing)
    for axis, across in (("x", (1, 2)), ("y", (2, 0)), ("z", (0, 1))):
        for degrees in ANGLES:
            cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
            turn = np.eye(3)
            turn[np.ix_(across, across)] = [[cosine, -sine], [sine, cosine]]
            yield f"{degrees} degrees about {axis}", "rotation", turn


def copy(image, label, matrix):
    """The volume and its labels on voxels that `matrix` leads to, about the same centre. The source has 1 mm voxels."""
    voxels, truth = np.asarray(image.dataobj, np.float32), np.asarray(label.dataobj)
    shape = np.array(voxels.shape)
    steps = np.linalg.norm(matrix, axis=0)
    count = np.ceil(shape / steps - 0.02).astype(int)
    offset = (shape - 1) / 2 - matrix @ ((count - 1) / 2)
    place = np.eye(4)
    place[:3, :3], place[:3, 3] = matrix, offset

    def sample(values):
        return affine_transform(values.astype(np.float32), matrix, offset, tuple(count), order=1, mode="nearest")

    if np.array_equal(matrix, np.eye(3)):
        moved, labels = voxels, truth
    else:
        moved = sample(voxels)
        labels = np.argmax([sample(truth == value) for value in range(int(truth.max()) + 1)], axis=0)
    return [write(values, image.affine @ place) for values in (moved, labels.astype(np.uint8))]


def write(values, affine):
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    return image


def measure(options, folder):
    report = folder / "report.json"
    command = [options.cdal, "eval", "--bundle", options.bundle, "--data", folder, "--json", report]
    command += ["--votes", str(options.votes)] if options.votes else []
    command += ["--steps", str(options.steps)] if options.steps else []
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(report.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cdal", default="target/release/cdal")
    parser.add_argument("--bundle", default="onnx/hippocampus")
    parser.add_argument("--data", type=pathlib.Path, default="../shared/data/hippocampus")
    parser.add_argument("--cases", type=int, help="take the first so many of the validation cases")
    parser.add_argument("--votes", type=int)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    names = json.loads((options.data / "splits.json").read_text())["val"][: options.cases]
    load = {kind: lambda name, kind=kind: nibabel.load(next((options.data / kind).glob(f"{name}*.nii*")))
            for kind in ("images", "labels")}
    base, missed = None, []
    print(f"| grid of {len(names)} volumes | Dice by label | HD95 by label, mm | ms a case |\n|---|---|---|---|")
    for way, kind, matrix in ways():
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch)
            for part in load:
                (folder / part).mkdir()
            for name in names:
                for part, image in zip(load, copy(load["images"](name), load["labels"](name), matrix)):
                    nibabel.save(image, folder / part / f"{name}.nii.gz")
            report = measure(options, folder)
        summary = report["summary"]
        dice, hd95 = ([label[metric]["mean"] for label in summary["labels"]] for metric in ("dice", "hd95"))
        base = base or (dice, hd95)
        print(f"| {way} | {' '.join(f'{d:.4f}' for d in dice)} | {' '.join(f'{h:.2f}' for h in hd95)} "
              f"| {summary['milliseconds']:.0f} |", flush=True)
        if kind and any(b - d > MOST[kind] for b, d in zip(base[0], dice)):
            missed.append(f"{way}: Dice")
        if kind and any(h > MOST_HD95 * b for b, h in zip(base[1], hd95)):
            missed.append(f"{way}: HD95")
    if missed:
        sys.exit("beyond the bounds: " + ", ".join(missed))


if __name__ == "__main__":
    main()

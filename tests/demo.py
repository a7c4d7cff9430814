"""`make demo`: a daemon and a workstation on this machine; DICOM series in, DICOM SEG out, compared with the truth.

Phantoms that were not trained on are sent by C-STORE as a scanner would send them. Each mask that the workstation
stored is read by an independent reader and held against the phantom's truth.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
from PIL import Image
from pynetdicom import AE

ROOT = Path(__file__).parents[1]
BINARY = ROOT / "target/release/cdal"
TRUTH_NAMES = ("anterior part", "posterior part")
COLOURS = np.array([[0, 0, 0], [230, 97, 1], [94, 60, 153]], float)
GOAL = 0.90


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--cases", type=int, default=20)
    arguments.add_argument("--folder", type=Path, default=ROOT / "demo")
    a = arguments.parse_args()
    shutil.rmtree(a.folder, ignore_errors=True)
    cases = a.folder / "cases"
    subprocess.run([BINARY, "phantom", "--out", cases, "--count", str(a.cases)], check=True, stdout=subprocess.DEVNULL)

    workstation = start(a.folder, "workstation", "--out", a.folder / "workstation", "--dicom", "0")
    port = ready(workstation)["dicom"].rsplit(":", 1)[1]
    environment = {"CDAL_INGEST__DICOM__LISTEN": "127.0.0.1:0", "CDAL_SPOOL__DIRECTORY": str(a.folder / "spool")}
    configuration = (ROOT / "configs/demo.daemon.toml").read_text().replace("127.0.0.1:11113", f"127.0.0.1:{port}")
    (a.folder / "demo.daemon.toml").write_text(configuration)
    daemon = start(a.folder, "serve", "--config", a.folder / "demo.daemon.toml", environment=environment)
    try:
        address = ready(daemon)["dicom"].rsplit(":", 1)
        return run(a, cases, workstation, address)
    finally:
        for process in (daemon, workstation):
            process.terminate()
        for process in (daemon, workstation):
            process.wait(timeout=30)


def run(a, cases: Path, workstation, address) -> int:
    seconds, dice = [], []
    for number, series in enumerate(sorted((cases / "images").iterdir())):
        sent = send(address, series)
        received = json.loads(workstation.stdout.readline())
        seconds.append(time.monotonic() - sent)
        mask = read_mask(received["path"])
        truth = np.asarray(nibabel.load(cases / "labels" / f"{series.name}.nii.gz").dataobj).transpose(2, 1, 0)
        dice.append([overlap(mask == label, truth == label) for label in (1, 2)])
        print(f"{series.name}: Dice {dice[-1][0]:.3f} {dice[-1][1]:.3f}, {seconds[-1] * 1e3:.0f} ms from the last byte in "
              "to the mask on the workstation's disk", flush=True)
        if number == 0:
            picture = a.folder / "overlay.png"
            overlay(series, mask).save(picture)
            print(f"  mask     {received['path']}\n  overlay  {picture}", flush=True)
    means = np.mean(dice, axis=0)
    good = bool((means >= GOAL).all())
    print(f"\n{len(dice)} cases that were not trained on: mean Dice "
          + ", ".join(f"{name} {mean:.3f}" for name, mean in zip(TRUTH_NAMES, means))
          + f" (worst {np.min(dice):.3f}); median latency {statistics.median(seconds) * 1e3:.0f} ms. "
          + (f"The goal of {GOAL:.2f} is reached." if good else f"The goal of {GOAL:.2f} is MISSED."))
    return 0 if good else 1


def start(folder: Path, *arguments, environment=None) -> subprocess.Popen:
    folder.mkdir(parents=True, exist_ok=True)

    log = (folder / f"{arguments[0]}.log").open("w")
    return subprocess.Popen([BINARY, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True,
                            env=os.environ | (environment or {}))


def ready(process: subprocess.Popen) -> dict:
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{process.args[1]} did not start; see its log in the demo's folder")
    return json.loads(line)


def send(address, series: Path) -> float:
    """C-STORE of a whole series; gives the moment of the last acknowledgement."""
    files = [pydicom.dcmread(path) for path in sorted(series.iterdir())]
    scanner = AE(ae_title="SCANNER")
    scanner.add_requested_context(files[0].SOPClassUID, files[0].file_meta.TransferSyntaxUID)
    association = scanner.associate(address[0], int(address[1]), ae_title="CDAL")
    if not association.is_established:
        raise SystemExit("the daemon refused the association")
    for file in files:
        if (status := association.send_c_store(file).Status) != 0:
            raise SystemExit(f"C-STORE status {status:04X}")
    done = time.monotonic()
    association.release()
    return done


def read_mask(path: str) -> np.ndarray:
    """[D, H, W] label values of a SEG, slices by position as the source's."""
    seg = highdicom.seg.segread(path)
    segments = [seg.get_volume(segment_numbers=[n], combine_segments=False).array[..., 0] for n in (1, 2)]
    volume = seg.get_volume(segment_numbers=[1], combine_segments=False)
    mask = np.zeros(segments[0].shape, np.uint8)
    for label, segment in enumerate(segments, start=1):
        mask[segment > 0] = label
    # highdicom may stack slices the other way; phantoms' slices run upwards
    return mask if volume.affine[2, 0] > 0 else mask[::-1]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    total = a.sum() + b.sum()
    return float(2 * (a & b).sum() / total) if total else 1.0


def overlay(series: Path, mask: np.ndarray) -> Image.Image:
    """Eight slices through the structure: the image above, the mask on it below."""
    files = sorted((pydicom.dcmread(path) for path in series.iterdir()), key=lambda f: f.ImagePositionPatient[2])
    image = np.stack([f.pixel_array for f in files]).astype(float)
    image = np.clip(image / np.percentile(image, 99.5), 0, 1) * 255
    shown = np.flatnonzero(mask.any(axis=(1, 2)))
    rows = []
    for masked in (False, True):
        tiles = []
        for k in shown[np.linspace(0, len(shown) - 1, 8).astype(int)]:
            tile = np.repeat(image[k][..., None], 3, axis=2)
            if masked:
                inside = mask[k] > 0
                tile[inside] = 0.45 * tile[inside] + 0.55 * COLOURS[mask[k][inside]]
            tiles.append(np.pad(np.kron(tile, np.ones((4, 4, 1))), ((2, 2), (2, 2), (0, 0))))
        rows.append(np.concatenate(tiles, axis=1))
    return Image.fromarray(np.concatenate(rows).astype(np.uint8))


if __name__ == "__main__":
    sys.exit(main())

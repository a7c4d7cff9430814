"""Compares decoded DICOM images with what pydicom makes of the same files.

Reads a manifest (JSON lines: {"file", "shape", "values"}), `values` being a file of little-endian
float32 in [C, H, W]. Prints one line per file; exits 1 if one differs.
"""

import json
import pathlib
import sys

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, apply_color_lut, pixel_array

LOSSY = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.91"}


def expected(dataset):
    """[C, H, W] as the codec defines it, or None where pydicom has no decoder for the syntax."""
    try:
        array = pixel_array(dataset)
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        return None, str(error).splitlines()[0]
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        array = apply_color_lut(array, dataset)
    if array.ndim == 3:
        return np.moveaxis(array, -1, 0).astype(np.float64), None
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        span = 2**dataset.BitsStored - 1
        array = (-1 if dataset.PixelRepresentation else span) - array.astype(np.float64)
    values = apply_modality_lut(array, dataset).astype(np.float64)
    if "PixelPaddingValue" in dataset:
        # Padding has the lowest value of the rest.
        ends = [dataset.PixelPaddingValue, dataset.get("PixelPaddingRangeLimit", dataset.PixelPaddingValue)]
        padded = (pixel_array(dataset) >= min(ends)) & (pixel_array(dataset) <= max(ends))
        values[padded] = values[~padded].min()
    return values[None], None


def main():
    failures = 0
    for line in pathlib.Path(sys.argv[1]).read_text().splitlines():
        entry = json.loads(line)
        dataset = pydicom.dcmread(entry["file"])
        found = np.fromfile(entry["values"], "<f4").reshape(entry["shape"])
        reference, reason = expected(dataset)
        name = pathlib.Path(entry["file"]).name
        if reference is None:
            print(f"{name}: no reference ({reason})")
            continue
        difference = np.abs(reference - found).max() if reference.shape == found.shape else np.inf
        colour = found.shape[0] == 3
        # Lossy decoders and colour conversions round differently.
        tolerance = 4.0 if dataset.file_meta.TransferSyntaxUID in LOSSY or colour else 1e-3
        verdict = "ok" if difference <= tolerance else "DIFFERS"
        failures += verdict != "ok"
        print(f"{name}: {verdict}, at most {difference:g} apart, {found.shape}")
    sys.exit(1 if failures else 0)


main()

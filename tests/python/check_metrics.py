"""Measures mask against truth as MONAI defines it, on SciPy: the yardstick for `cdal eval`.

check_metrics.py PAIRS: a JSON list of [mask, truth, labels], both NIfTI paths. Prints for each pair and label
{"dice", "iou", "hd95"}, null where not defined. A volume of one slice is measured as a 2-D image.
"""

import json
import sys

import nibabel
import numpy as np
from scipy import ndimage


def hd95(mask, truth, spacing):
    if not mask.any() or not truth.any():
        return None
    surfaces = [volume ^ ndimage.binary_erosion(volume) for volume in (mask, truth)]
    directed = []
    for source, target in (surfaces, surfaces[::-1]):
        distance = ndimage.distance_transform_edt(~target, sampling=spacing)
        directed.append(np.percentile(distance[source], 95))
    return max(directed)


def measure(mask_path, truth_path, labels):
    images = [nibabel.load(path) for path in (mask_path, truth_path)]
    spacing = np.array(images[1].header.get_zooms()[:3], float)
    mask, truth = (np.asarray(image.dataobj).reshape(image.shape[:3]) for image in images)
    if mask.shape[2] == 1:
        mask, truth, spacing = mask[..., 0], truth[..., 0], spacing[:2]
    for label in range(1, labels + 1):
        a, b = mask == label, truth == label
        both, union = np.sum(a & b), np.sum(a | b)
        yield {
            "dice": float(2 * both / (a.sum() + b.sum())) if b.any() else None,
            "iou": float(both / union) if b.any() else None,
            "hd95": hd95(a, b, spacing),
        }


with open(sys.argv[1]) as file:
    print(json.dumps([list(measure(*pair)) for pair in json.load(file)]))

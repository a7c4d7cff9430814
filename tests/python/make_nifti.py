"""Writes NIfTI images of many kinds into FOLDER, and what they hold beside each as .f32 ([C, D, H, W])."""

import pathlib
import sys

import nibabel
import numpy as np

folder = pathlib.Path(sys.argv[1])
shape = (4, 3, 2)
angle = 0.4
rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
affine = np.eye(4)
affine[:3, :3] = rotation @ np.diag([-0.5, 0.75, 3.0])
affine[:3, 3] = [10, -20, 30]


def save(name, image):
    path = folder / f"{name}.nii.gz"
    nibabel.save(image, path)
    values = np.asarray(nibabel.load(path).dataobj)
    if values.dtype.fields:
        values = np.stack([values[c] for c in "RGB"], -1)
    else:
        values = values.reshape(values.shape[:3] + (1,) * (3 - min(values.ndim, 3)))[..., None]
    values.reshape(values.shape[:3] + (-1,)).transpose(3, 2, 1, 0).astype("<f4").tofile(folder / f"{name}.f32")


counting = np.arange(24).reshape(shape)
for kind in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"):
    for order in "<>":
        header = nibabel.Nifti1Header(endianness=order)
        header.set_data_dtype(order + kind)
        image = nibabel.Nifti1Image(counting.astype(order + kind), affine, header)
        save(f"{kind}_{'little' if order == '<' else 'big'}", image)

scaled = nibabel.Nifti1Image(counting.astype("i2"), affine)
scaled.header.set_slope_inter(0.5, -3)
save("scaled", nibabel.Nifti1Image.from_bytes(scaled.to_bytes()))

q_only = nibabel.Nifti1Image(counting.astype("i2"), affine)
q_only.set_sform(None, code=0)
q_only.set_qform(affine, code=1)
save("q_only", q_only)

other_form = nibabel.Nifti1Image(counting.astype("i2"), affine)
other_form.set_qform(np.diag([2, 2, 2, 1]), code=1)
other_form.set_sform(affine, code=2)
save("both_forms", other_form)

save("four_axes", nibabel.Nifti1Image(counting.astype("i2").reshape(shape + (1,)), affine))

colour = np.zeros((4, 3, 1), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
for offset, channel in enumerate("RGB"):
    colour[channel] = np.arange(12).reshape(4, 3, 1) + 50 * offset
save("colour", nibabel.Nifti1Image(colour, affine))

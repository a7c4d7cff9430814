"""Holds a NIfTI mask against its image and its values.

check_nifti.py IMAGE MASK VALUES: VALUES is a file of bytes, [D, H, W]. Exits 1 if the affine, one of
its forms or a voxel differs.
"""

import pathlib
import sys

import nibabel
import numpy as np


def main():
    image, mask = nibabel.load(sys.argv[1]), nibabel.load(sys.argv[2])
    assert mask.get_data_dtype() == np.uint8, mask.get_data_dtype()
    assert mask.shape == image.shape[:3], (mask.shape, image.shape)
    assert (mask.affine == image.affine).all(), (mask.affine, image.affine)
    for form in ("get_qform", "get_sform"):
        (ours, our_code), (theirs, their_code) = (getattr(x, form)(coded=True) for x in (mask, image))
        assert our_code == their_code, (form, our_code, their_code)
        assert ours is None and theirs is None or np.array_equal(ours, theirs), (form, ours, theirs)
    values = np.frombuffer(pathlib.Path(sys.argv[3]).read_bytes(), np.uint8).reshape(mask.shape[::-1])
    assert (np.transpose(np.asarray(mask.dataobj), (2, 1, 0)) == values).all(), "voxels"
    print("ok")


main()

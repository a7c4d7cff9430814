"""Holds a fractional DICOM Segmentation against the agreement it was made from.

check_fractional.py SEG SOURCE...: the agreement of label l at slice k, row j, column i is
((13 l + 31 k + 17 j + 7 i) mod 6) / 5, as tests/it/codec_seg.rs makes it. Exits 1 with the first fault.
"""

import sys

import highdicom
import numpy as np
import pydicom


def main():
    seg = highdicom.seg.segread(sys.argv[1])
    sources = [pydicom.dcmread(path, stop_before_pixels=True) for path in sys.argv[2:]]
    assert seg.SegmentationType == "FRACTIONAL" and seg.SegmentationFractionalType == "PROBABILITY"
    assert seg.MaximumFractionalValue == 255 and seg.SegmentsOverlap == "YES"
    assert (seg.BitsAllocated, seg.BitsStored, seg.HighBit) == (8, 8, 7)
    assert seg.pixel_array.max() <= seg.MaximumFractionalValue
    assert seg.InstanceNumber == 2 and seg.ContentDescription.endswith("revision 2")
    slices = seg.NumberOfFrames // seg.number_of_segments
    k, j, i = np.indices((slices, seg.Rows, seg.Columns))
    for segment in seg.segment_numbers:
        truth = (13 * segment + 31 * k + 17 * j + 7 * i) % 6 / 5
        volume = seg.get_volume(segment_numbers=[segment], combine_segments=False, rescale_fractional=True)
        found = volume.array[..., 0] if volume.array.ndim == 4 else volume.array
        orientation = np.array(sources[0].ImageOrientationPatient, float)
        # highdicom runs slices against the normal by its own convention.
        if np.dot(volume.affine[:3, 0], np.cross(*np.split(orientation, 2))) < 0:
            found = found[::-1]
        assert found.shape == truth.shape, (found.shape, truth.shape)
        assert np.abs(found - truth).max() <= 0.5 / 255 + 1e-6, f"segment {segment} differs"
    print(f"ok: {seg.NumberOfFrames} frames")


main()

"""Holds a DICOM Segmentation against the mask it was made from.

check_seg.py SEG MASK SOURCE...: MASK is .npy or .nii.gz (label values), SOURCE the source instances.
Checks every voxel through highdicom and what dciodvfy does not look at. Exits 1 with the first fault.
"""

import sys

import highdicom
import numpy as np
import pydicom


def load_mask(path):
    """[D, H, W]"""
    if path.endswith(".npy"):
        return np.load(path)
    import nibabel

    return np.transpose(np.asarray(nibabel.load(path).dataobj), (2, 1, 0))


def check_voxels(seg, mask, sources):
    """`mask` is in slice order along the normal; frames are found by their place or by their source."""
    for segment in seg.segment_numbers:
        truth = mask == segment
        if "FrameOfReferenceUID" in seg:
            volume = seg.get_volume(segment_numbers=[segment], combine_segments=False)
            found = volume.array[..., 0] if volume.array.ndim == 4 else volume.array
            # highdicom runs slices against the normal by its own convention.
            normal = np.cross(*np.split(np.array(sources[0].get("ImageOrientationPatient") or orientation(seg), float), 2))
            if np.dot(volume.affine[:3, 0], normal) < 0:
                found = found[::-1]
            assert found.shape == truth.shape, (found.shape, truth.shape)
            assert (found == truth).all(), f"segment {segment}: {(found != truth).sum()} voxels differ"
        else:
            uids = [source.SOPInstanceUID for source in sources]
            found = seg.get_pixels_by_source_instance(
                uids, segment_numbers=[segment], ignore_spatial_locations=True
            )[..., 0]
            assert (found == truth).all(), f"segment {segment} differs"


def orientation(seg):
    shared = seg.SharedFunctionalGroupsSequence[0]
    return shared.PlaneOrientationSequence[0].ImageOrientationPatient


def check_geometry(seg, sources):
    """Every frame lies where the source slice it names lies."""
    if "FrameOfReferenceUID" not in seg:
        assert "PixelMeasuresSequence" not in seg.SharedFunctionalGroupsSequence[0]
        return
    shared = seg.SharedFunctionalGroupsSequence[0]
    measures = shared.PixelMeasuresSequence[0]
    assert float(measures.SliceThickness) > 0 and float(measures.SpacingBetweenSlices) > 0
    by_uid = {source.SOPInstanceUID: source for source in sources}
    for frame in seg.PerFrameFunctionalGroupsSequence:
        reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
        source = by_uid[reference.ReferencedSOPInstanceUID]
        groups = source
        if "PerFrameFunctionalGroupsSequence" in source:
            index = int(reference.ReferencedFrameNumber) - 1
            groups = source.PerFrameFunctionalGroupsSequence[index].PlanePositionSequence[0]
        else:
            assert np.allclose(shared.PlaneOrientationSequence[0].ImageOrientationPatient, source.ImageOrientationPatient, atol=1e-6)
            assert np.allclose(measures.PixelSpacing, source.PixelSpacing, atol=1e-6)
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(place, groups.ImagePositionPatient, atol=1e-6)
    if "FrameOfReferenceUID" in sources[0]:
        assert seg.FrameOfReferenceUID == sources[0].FrameOfReferenceUID


def check_attributes(seg, sources):
    first = sources[0]
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
                 "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"):
        assert name in seg, name
        assert str(seg.get(name) or "") == str(first.get(name) or ""), name
    assert seg.Modality == "SEG" and seg.SeriesInstanceUID != first.SeriesInstanceUID
    for name in ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions",
                 "ContentLabel", "ContentCreatorName", "ContentDate", "ContentTime"):
        assert seg.get(name), name
    assert seg.SegmentsOverlap == "NO" and seg.SegmentationType == "BINARY"
    assert (seg.BitsAllocated, seg.BitsStored, seg.HighBit) == (1, 1, 0)
    assert seg.LossyImageCompression == first.get("LossyImageCompression", "00")
    bits = seg.Rows * seg.Columns * seg.NumberOfFrames
    assert len(seg.PixelData) == (bits + 15) // 16 * 2
    referenced = {i.ReferencedSOPInstanceUID for i in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced == {source.SOPInstanceUID for source in sources}
    indices = {tuple(np.atleast_1d(f.FrameContentSequence[0].DimensionIndexValues)) for f in seg.PerFrameFunctionalGroupsSequence}
    assert len(indices) == seg.NumberOfFrames, "dimension indices tell frames apart"
    equipment = seg.ContributingEquipmentSequence[0]
    assert code(equipment.PurposeOfReferenceCodeSequence) == ("109102", "DCM")
    for part in ("sha256=", "steps=", "votes=", "seed="):
        assert part in equipment.ContributionDescription, part
    for number, segment in enumerate(seg.SegmentSequence, 1):
        assert segment.SegmentNumber == number and segment.SegmentAlgorithmType == "AUTOMATIC"
        assert code(segment.SegmentedPropertyCategoryCodeSequence)[1] == "SCT"
        assert code(segment.SegmentedPropertyTypeCodeSequence)[1] == "SCT"
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert code(algorithm.AlgorithmFamilyCodeSequence) == ("123110", "DCM")
        assert "seed=" in algorithm.AlgorithmParameters
    for frame in seg.PerFrameFunctionalGroupsSequence:
        derivation = frame.DerivationImageSequence[0]
        assert code(derivation.DerivationCodeSequence) == ("113076", "DCM")
        assert code(derivation.SourceImageSequence[0].PurposeOfReferenceCodeSequence) == ("121322", "DCM")


def code(sequence):
    return sequence[0].CodeValue, sequence[0].CodingSchemeDesignator


def main():
    seg_path, mask_path, *source_paths = sys.argv[1:]
    sources = [pydicom.dcmread(path, stop_before_pixels=True) for path in source_paths]
    seg = highdicom.seg.segread(seg_path)
    check_attributes(seg, sources)
    check_geometry(seg, sources)
    check_voxels(seg, load_mask(mask_path), sources)
    print(f"ok: {seg.NumberOfFrames} frames, {seg.number_of_segments} segments")


main()

"""Series as they come: changes a plain series in one way each, and compares masks in patient space.

    series_cases.py make CASE SLICES OUT    writes the case CASE, made of the DICOM files in the folder SLICES
    series_cases.py dice A B                Dice of each label of two Segmentations or NIfTI masks, as JSON
"""

import copy
import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from scipy.spatial import cKDTree

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read(folder):
    slices = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    return sorted(slices, key=lambda d: np.dot(d.ImagePositionPatient, normal(d)))


def normal(d):
    o = [float(x) for x in d.ImageOrientationPatient]
    return np.cross(o[:3], o[3:])


def write(out, slices):
    """Under UIDs of their own, in an order that is not the one in space."""
    out.mkdir(parents=True, exist_ok=True)
    series = generate_uid(entropy_srcs=[out.name, "series"])
    for number, d in enumerate(slices):
        d.SeriesInstanceUID = series
        d.SOPInstanceUID = generate_uid(entropy_srcs=[out.name, str(number)])
        d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID
        d.InstanceNumber = number + 1
        d.save_as(out / f"{number * 7 % len(slices):03}.dcm", enforce_file_format=True)


def scout(like, orientation, size=None):
    d = copy.deepcopy(like)
    d.ImageOrientationPatient, d.ImagePositionPatient = orientation, [-25.0, -25.0, 20.0]
    if size:
        d.Rows = d.Columns = size
        d.PixelData = np.full((size, size), 900, "<u2").tobytes()
    return d


CORONAL, SAGITTAL = [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]


def localizers(slices, out):
    marked = [scout(slices[9], CORONAL), scout(slices[9], SAGITTAL)]
    for d in marked:
        d.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write(out, marked + slices)


def unmarked_scouts(slices, out):
    write(out, slices[:5] + [scout(slices[9], SAGITTAL, 64)] + slices[5:])


def move(slices, change):
    for k, d in enumerate(slices):
        d.ImagePositionPatient = [f"{x:.6f}" for x in change(k, np.array(d.ImagePositionPatient, float))]


def rounded(slices, out):
    move(slices, lambda _, p: np.round(p, 1))
    write(out, slices)


def jittered(slices, out):
    random = np.random.default_rng(5)
    move(slices, lambda _, p: p + random.uniform(-0.1, 0.1, 3))
    write(out, slices)


def tilted(slices, out):
    down = np.array(slices[0].ImageOrientationPatient[3:], float)
    step = np.dot(np.subtract(slices[1].ImagePositionPatient, slices[0].ImagePositionPatient), normal(slices[0]))
    move(slices, lambda k, p: p + down * np.tan(np.radians(15)) * abs(step) * k)
    write(out, slices)


def gap(slices, out):
    write(out, slices[:8] + slices[9:])


def times(slices, keyword):
    """The series twice, the second time dark."""
    later = copy.deepcopy(slices)
    for number, volume in enumerate((slices, later)):
        for d in volume:
            if keyword:
                setattr(d, keyword, number + 1)
    for d in later:
        d.PixelData = np.zeros_like(d.pixel_array).tobytes()
    return slices + later


def time_points(slices, out):
    write(out, times(slices, "TemporalPositionIdentifier"))


def twice(slices, out):
    write(out, times(slices, None))


def mosaic(slices, out):
    for d in slices:
        d.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    write(out, slices)


def without(keyword):
    def make(slices, out):
        del slices[4][keyword]
        write(out, slices)
    return make


def enhanced(slices, out):
    """Two time points of an enhanced MR image."""
    frames = times(slices, "TemporalPositionIdentifier")
    d = copy.deepcopy(slices[0])
    d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
                    "TemporalPositionIdentifier"):
        del d[keyword]
    d.NumberOfFrames = len(frames)
    d.PixelData = b"".join(f.PixelData for f in frames)

    def item(**values):
        one = Dataset()
        for keyword, value in values.items():
            setattr(one, keyword, value)
        return one

    first = slices[0]
    d.SharedFunctionalGroupsSequence = Sequence([item(
        PixelMeasuresSequence=[item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=first.ImageOrientationPatient)])])
    d.PerFrameFunctionalGroupsSequence = Sequence([item(
        FrameContentSequence=[item(TemporalPositionIndex=f.TemporalPositionIdentifier, StackID="1")],
        PlanePositionSequence=[item(ImagePositionPatient=f.ImagePositionPatient)]) for f in frames])
    write(out, [d])


def padding(declared):
    def make(slices, out):
        rows, columns = slices[0].pixel_array.shape
        j, i = np.mgrid[:rows, :columns]
        outside = ((j - rows / 2) / (rows / 2)) ** 2 + ((i - columns / 2) / (columns / 2)) ** 2 > 1
        lowest = min(int(d.pixel_array[~outside].min()) for d in slices)
        for d in slices:
            pixels = d.pixel_array.astype("<i2")
            pixels[outside] = lowest
            if declared:
                pixels[outside] = -3000 - (np.arange(outside.sum()) % 5 if declared == "range" else 0)
                d.add_new("PixelPaddingValue", "SS", -3000)
            if declared == "range":
                d.add_new("PixelPaddingRangeLimit", "SS", -3004)
            d.PixelRepresentation = 1
            d.PixelData = pixels.tobytes()
        write(out, slices)
    return make


def radiographs(slices, out):
    """One picture, kept in the ways of several vendors; `plain` is the yardstick."""
    out.mkdir(parents=True)
    j, i = np.mgrid[:128, :128]
    lungs = sum(np.exp(-(((j - 66) / 40) ** 2 + ((i - c) / 19) ** 2) ** 2) for c in (38, 90))
    grey = np.clip(200 - 130 * lungs + 12 * np.sin(i / 3.1) + 9 * np.cos(j / 4.3), 0, 255).astype("<u2") // 2 * 2

    def picture(name, pixels, stored, **values):
        d = Dataset()
        d.file_meta = copy.deepcopy(slices[0].file_meta)
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "StudyTime"):
            setattr(d, keyword, getattr(slices[0], keyword))
        d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
        d.SOPInstanceUID = d.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[name])
        d.SeriesInstanceUID, d.Modality = generate_uid(entropy_srcs=[name, "series"]), "DX"
        d.Rows, d.Columns = pixels.shape
        d.SamplesPerPixel, d.PhotometricInterpretation, d.PixelRepresentation = 1, "MONOCHROME2", 0
        d.BitsAllocated, d.BitsStored, d.HighBit = 16, stored, stored - 1
        d.PixelData = pixels.astype("<u2").tobytes()
        for keyword, value in values.items():
            setattr(d, keyword, value)
        d.save_as(out / f"{name}.dcm", enforce_file_format=True)

    def table(entries, bits, first=0):
        lut = Dataset()
        lut.add_new("LUTDescriptor", "US", [len(entries), first, bits])
        lut.add_new("LUTData", "OW", np.asarray(entries).astype("<u2").tobytes())
        return [lut]

    deep, ramp = grey * 16, np.arange(4096)
    picture("plain", deep, 12)
    picture("mirrored", 4095 - deep, 12, PhotometricInterpretation="MONOCHROME1")
    picture("inverse_shape", 4095 - deep, 12, PresentationLUTShape="INVERSE")
    picture("twelve_in_sixteen", deep, 16)
    picture("twelve_in_sixteen_mirrored", 4095 - deep, 16, PhotometricInterpretation="MONOCHROME1")
    picture("window", deep, 16, WindowCenter="2048", WindowWidth="4096")
    picture("exact", deep, 16, WindowCenter="2047.5", WindowWidth="4095", VOILUTFunction="LINEAR_EXACT")
    picture("voi_table", deep, 16, VOILUTSequence=table(ramp * 16, 16))
    picture("voi_table_of_other_depth", deep, 16, VOILUTSequence=table(ramp, 16))
    picture("voi_table_mirrored", deep, 16, VOILUTSequence=table((4095 - ramp) * 16, 16),
            PhotometricInterpretation="MONOCHROME1")
    squared = np.floor(np.sqrt(deep / 4095.0) * 4095.0 + 0.5)
    picture("voi_table_curved", squared, 16, VOILUTSequence=table(ramp**2 / 4095 * 16, 16))
    picture("modality_table", deep, 16, ModalityLUTSequence=table(ramp * 16, 16))
    shifted = deep << 4
    picture("high_bits", shifted | 5, 12, HighBit=15)
    picture("overlay_above", deep | 0x8000, 12)
    picture("rescaled", deep, 12, RescaleSlope="0.5", RescaleIntercept="-100", WindowCenter="924",
            WindowWidth="2048.5")
    picture("signed", deep.astype("<i2") - 2048, 12, PixelRepresentation=1)
    odds = np.log(np.clip(deep, 41, 4054) / (4095 - np.clip(deep, 41, 4054))) / 4
    picture("sigmoid", np.round(2048 + odds * 1000), 16, WindowCenter="2048", WindowWidth="1000",
            VOILUTFunction="SIGMOID")


def nifti(change):
    """Image and mask of the same grid in `images/c.nii.gz` and `labels/c.nii.gz`."""
    def make(slices, out):
        affine = np.eye(4)
        o = np.array(slices[0].ImageOrientationPatient, float)
        spacing = [float(x) for x in slices[0].PixelSpacing]
        first, second = (np.array(d.ImagePositionPatient, float) for d in slices[:2])
        affine[:3, :4] = np.c_[o[:3] * spacing[1], o[3:] * spacing[0], second - first, first]
        affine = RAS @ affine
        data = np.stack([d.pixel_array for d in slices]).transpose(2, 1, 0)
        bright = (data > np.percentile(data, 97)).astype(np.uint8)
        for folder, values in (("images", data.astype(np.int16)), ("labels", bright)):
            image = nibabel.Nifti1Image(values, affine)
            image.set_qform(affine, 1)
            image.set_sform(affine, 1)
            image = change(image, affine)
            (out / folder).mkdir(parents=True, exist_ok=True)
            nibabel.save(image, out / folder / "c.nii.gz")
    return make


def shear(degrees, qform):
    def change(image, affine):
        bent = affine.copy()
        bent[:3, 2] += np.tan(np.radians(degrees)) * np.linalg.norm(bent[:3, 2]) * bent[:3, 0] / np.linalg.norm(bent[:3, 0])
        image.set_sform(bent, 2)
        if not qform:
            image.set_qform(None, 0)
        return image
    return nifti(change)


def units(code, factor):
    def change(image, affine):
        scaled = affine.copy()
        scaled[:3] *= factor
        image = nibabel.Nifti1Image(np.asarray(image.dataobj), scaled)
        image.set_qform(scaled, 1)
        image.set_sform(scaled, 1)
        image.header["xyzt_units"] = code
        return image
    return nifti(change)


def trailing(image, affine):
    """A time axis of one volume, a scaling that is no number, the bytes the other way round."""
    data = np.asarray(image.dataobj)[..., None, None]
    image = nibabel.Nifti1Image(data, affine, image.header.as_byteswapped(">"))
    image.header["scl_slope"] = np.nan
    return image


CASES = {
    "plain": lambda slices, out: write(out, slices), "localizers": localizers, "unmarked_scouts": unmarked_scouts,
    "rounded": rounded, "jittered": jittered, "tilted": tilted, "gap": gap, "time_points": time_points,
    "twice": twice, "mosaic": mosaic, "enhanced": enhanced, "no_position": without("ImagePositionPatient"),
    "no_orientation": without("ImageOrientationPatient"), "no_spacing": without("PixelSpacing"),
    "padded": padding("value"), "padded_range": padding("range"), "unpadded": padding(None), "radiographs": radiographs,
    "nifti": nifti(lambda image, _: image), "nifti_metre": units(1, 1e-3), "nifti_micron": units(3, 1e3),
    "nifti_unknown": units(0, 1.0), "nifti_trailing": nifti(trailing), "nifti_shear_half": shear(0.5, True),
    "nifti_shear_alone": shear(0.1, False), "nifti_shear_five": shear(5.0, True),
}


def points(path):
    """LPS millimetres of each label's voxels."""
    if path.suffix != ".dcm":
        image = nibabel.load(path)
        mask, affine = np.asarray(image.dataobj), RAS @ image.affine
        return {int(v): np.argwhere(mask == v) @ affine[:3, :3].T + affine[:3, 3] for v in np.unique(mask) if v}
    d = pydicom.dcmread(path)
    shared, found = d.SharedFunctionalGroupsSequence[0], {}
    for frame, own in zip(np.atleast_3d(d.pixel_array), d.PerFrameFunctionalGroupsSequence):
        label = int(own.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        ji = np.argwhere(frame > 0)
        if "PlanePositionSequence" in own:
            p = np.array(own.PlanePositionSequence[0].ImagePositionPatient, float)
            o = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
            s = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)
            at = p + np.outer(ji[:, 1] * s[1], o[:3]) + np.outer(ji[:, 0] * s[0], o[3:])
        else:
            at = np.c_[ji, np.zeros(len(ji))]
        found.setdefault(label, []).append(at)
    return {label: np.concatenate(parts) for label, parts in found.items() if sum(map(len, parts))}


def dice(a, b, near=0.3):
    a, b = points(a), points(b)
    result = {}
    for label in sorted(set(a) | set(b)):
        x, y = a.get(label, np.zeros((0, 3))), b.get(label, np.zeros((0, 3)))
        both = len(x) and len(y) and int((cKDTree(y).query(x)[0] < near).sum())
        result[label] = 2 * both / (len(x) + len(y))
    return result


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make", name, folder, out]:
            CASES[name](read(Path(folder)), Path(out))
        case ["dice", a, b]:
            print(json.dumps(dice(Path(a), Path(b))))
        case _:
            sys.exit(__doc__)

"""Holds the patient in segmentations against the patient in their sources.

check_patient.py SOURCE SEG [SOURCE SEG]...: in each pair the name must be the same bytes in the same character set, or the
same text, and the other copied attributes the same text. Exits 1 with the first fault.
"""

import sys
import warnings

import pydicom
from pydicom.charset import convert_encodings, default_encoding
from pydicom.multival import MultiValue

warnings.filterwarnings("ignore")
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
KEYWORDS = ["PatientID", "StudyInstanceUID", "AccessionNumber", "StudyDescription", "PatientAge", "PatientSex"]


def raw(dataset, keyword):
    """Bytes of a value, without padding."""
    value = dataset.get_item(keyword).value or b""
    return value.rstrip(b" \0")


def character_set(dataset):
    value = dataset.get("SpecificCharacterSet", "")
    return list(value) if isinstance(value, MultiValue) else [value]


def main(paths):
    for source_path, seg_path in zip(paths[::2], paths[1::2], strict=True):
        source, seg = pydicom.dcmread(source_path), pydicom.dcmread(seg_path)
        sets = character_set(source), character_set(seg)
        same_bytes = raw(source, "PatientName") == raw(seg, "PatientName") and sets[0] == sets[1]
        if not same_bytes:
            convert_encodings(source.get("SpecificCharacterSet", default_encoding))
            assert str(source.PatientName) == str(seg.PatientName), (sets, source_path)
        for keyword in KEYWORDS:
            assert str(source.get(keyword, "")) == str(seg.get(keyword, "")), (keyword, source_path)


if __name__ == "__main__":
    main(sys.argv[1:])

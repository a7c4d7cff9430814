"""stow.py PORT FILE...: a STOW-RS client. The files, written anew by pydicom and with something among them that is no DICOM, must
be answered instance by instance, in JSON as pydicom reads it and in XML as PS3.19 has it."""

import http.client
import io
import sys
import xml.etree.ElementTree as ET

import pydicom
from pydicom.dataset import Dataset

NATIVE = "{http://dicom.nema.org/PS3.19/models/NativeDICOM}"


def store(port, parts, accept, path="/studies"):
    body = b"".join(b"--edge\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n" for part in parts) + b"--edge--\r\n"
    headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=edge', "Accept": accept}
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    assert answer.headers["Content-Type"] == accept, answer.headers
    return answer.status, answer.read()


def rewritten(file):
    """With pydicom's own file meta information."""
    dataset = pydicom.dcmread(file)
    dataset.file_meta.ImplementationVersionName = "SOMEONE ELSE"
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return dataset, buffer.getvalue()


def main(port, *files):
    datasets, parts = zip(*map(rewritten, files))
    uids = [dataset.SOPInstanceUID for dataset in datasets]
    status, body = store(port, [*parts, b"no DICOM"], "application/dicom+json")
    assert status == 202, (status, body)
    answer = Dataset.from_json(body.decode())
    assert [item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence] == uids
    assert {item.ReferencedSOPClassUID for item in answer.ReferencedSOPSequence} == {datasets[0].SOPClassUID}
    assert [item.FailureReason for item in answer.OtherFailuresSequence] == [0xC000]
    assert "FailedSOPSequence" not in answer

    status, body = store(port, parts, "application/dicom+xml", f"/studies/{datasets[0].StudyInstanceUID}")
    assert status == 200, (status, body)
    root = ET.fromstring(body)
    assert root.tag == f"{NATIVE}NativeDicomModel"
    (stored,) = root.findall(f"{NATIVE}DicomAttribute[@keyword='ReferencedSOPSequence']")
    found = stored.findall(f"{NATIVE}Item/{NATIVE}DicomAttribute[@tag='00081155']/{NATIVE}Value")
    assert [value.text for value in found] == uids

    status, body = store(port, parts[:1], "application/dicom+json", "/studies/2.25.404")
    assert status == 409, (status, body)
    (failed,) = Dataset.from_json(body.decode()).FailedSOPSequence
    assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == (uids[0], 0xA900)


main(*sys.argv[1:])

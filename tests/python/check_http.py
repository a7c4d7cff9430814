"""Asks a daemon by HTTP as its clients do, the Open Inference Protocol through Triton's own client.

check_http.py ADDRESS NIFTI: ADDRESS is host:port, NIFTI an image. Exits 1 with the first fault, prints the jobs as JSON.
"""

import io
import json
import sys
import time
import urllib.error
import urllib.request

import nibabel
import numpy as np
from PIL import Image
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype


def ask(address, path, body=None, content_type="application/octet-stream"):
    request = urllib.request.Request(f"http://{address}{path}", data=body, headers={"Content-Type": content_type})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.status, answer.read()


def segment(address, body):
    """The job of one file and its mask."""
    status, answer = ask(address, "/v1/cases", body)
    assert status == 202, status
    href = json.loads(answer)["jobs"][0]["href"]
    for _ in range(600):
        job = json.loads(ask(address, href)[1])
        if job["state"] not in ("received", "ready", "running"):
            break
        time.sleep(0.1)
    assert job["state"] == "done", job
    return job, ask(address, f"{href}/mask")[1]


def picture():
    """[H, W] uint8: a bright arc on noise."""
    rows, columns = np.mgrid[0:48, 0:48]
    distance = np.hypot(rows - 24, columns - 24)
    noise = np.random.default_rng(5).normal(40, 10, (48, 48))
    return np.clip(noise + 150 * np.exp(-(((distance - 10) / 3) ** 2)), 0, 255).astype(np.uint8)


def check_inference(client, name, pixels, mask):
    def infer(binary, **options):
        image = triton.InferInput("image", [1, 1, *pixels.shape], "UINT8")
        image.set_data_from_numpy(pixels[None, None], binary_data=binary)
        outputs = [triton.InferRequestedOutput(n, binary_data=binary) for n in ("mask", "agreement")]
        return client.infer(name, [image], outputs=outputs, **options)

    for binary in (True, False):
        result = infer(binary, request_id="7")
        assert result.get_response()["id"] == "7"
        assert np.array_equal(result.as_numpy("mask")[0], mask), "the mask that /v1/cases gives"
        agreement = result.as_numpy("agreement")
        assert agreement.dtype == np.float32 and agreement.shape[1:] == (1, *pixels.shape), agreement.shape
        assert agreement.min() >= 0 and agreement.max() <= 1
    version = client.get_model_metadata(name)["versions"][0]
    votes = [infer(True, model_version=version, parameters={"votes": 1, "seed": seed}).as_numpy("agreement")
             for seed in (3, 3, 4)]
    assert np.array_equal(votes[0], votes[1]) and not np.array_equal(votes[1], votes[2]), "the seed decides"

    as_float = triton.InferInput("image", [1, 1, *pixels.shape], "FP32")
    as_float.set_data_from_numpy(pixels[None, None].astype(np.float32))
    found = client.infer(name, [as_float]).as_numpy("mask")
    assert np.array_equal(found[0], mask), "min-max normalisation does not see the datatype"

    for algorithm in ("gzip", "deflate"):
        found = client.infer(name, [as_float], request_compression_algorithm=algorithm).as_numpy("mask")
        assert np.array_equal(found[0], mask), f"packed with {algorithm}"
    for datatype in (np.bool_, np.int8, np.uint32, np.uint64, np.int64, np.float16, np.float64):
        values = pixels[None, None] > 100 if datatype == np.bool_ else pixels[None, None] // 2
        typed = triton.InferInput("image", [1, 1, *pixels.shape], np_to_triton_dtype(np.dtype(datatype)))
        typed.set_data_from_numpy(values.astype(datatype))
        assert client.infer(name, [typed]).as_numpy("mask").shape[1:] == pixels.shape, datatype

    wrong = triton.InferInput("image", [3, 1, 4, 4], "UINT8")
    wrong.set_data_from_numpy(np.zeros((3, 1, 4, 4), np.uint8))
    for model, inputs in ((name, [wrong]), (name + "x", [as_float])):
        try:
            client.infer(model, inputs)
        except InferenceServerException as error:
            assert len(str(error)) > 20, error
        else:
            raise AssertionError("a request that does not fit was answered")


def main(address, nifti):
    client = triton.InferenceServerClient(address)
    assert client.is_server_live() and client.is_server_ready()
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    name = json.loads(ask(address, "/v1/status")[1])["model"]["name"]
    assert client.is_model_ready(name) and not client.is_model_ready(name + "x")
    metadata = client.get_model_metadata(name)
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [1, -1, -1, -1]}], metadata

    pixels = picture()
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    flat, mask = segment(address, encoded.getvalue())
    mask = np.asarray(Image.open(io.BytesIO(mask)))
    assert mask.shape == pixels.shape and mask.any(), "a palette image of label values"
    check_inference(client, name, pixels, mask)

    with open(nifti, "rb") as file:
        deep, mask = segment(address, file.read())
    source = nibabel.load(nifti)
    mask = nibabel.Nifti1Image.from_bytes(__import__("gzip").decompress(mask))
    assert mask.shape == source.shape and np.allclose(mask.affine, source.affine)
    assert np.asarray(mask.dataobj).any()

    # Metrics: every stage was timed, and compute is not less than its parts.
    text = ask(address, "/metrics")[1].decode()
    assert "# TYPE cdal_build_info gauge" in text, text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    seconds = {s: float(values[f'cdal_stage_seconds_sum{{stage="{s}"}}']) for s in
               ("queue", "compute", "decode", "prepare", "condition", "denoise", "assemble", "encode")}
    assert float(values['cdal_stage_seconds_count{stage="compute"}']) == 2, text
    assert seconds["compute"] >= seconds["condition"] + seconds["denoise"] > 0, seconds
    assert values['cdal_jobs_total{outcome="done"}'] == "2" and values['cdal_objects_total{way="http"}'] == "2"
    assert values['cdal_spool_jobs{state="running"}'] == "0"
    assert int(values["cdal_resident_bytes"]) > 1 << 20
    assert any(line.startswith("cdal_build_info{") and f'model="{name}"' in line for line in values), text
    print(json.dumps([flat["id"], deep["id"]]))


main(*sys.argv[1:])

"""The Open Inference Protocol, spoken by Triton's own clients over both wires, sync and async, through the gateway."""

import asyncio
import json
import queue
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from muster import REQUEST_S, Muster

REPOSITORY = Path(__file__).parents[1] / "models/tensors"
# `large` wants weights that a test writes; it is not served here.
MODELS = ["add", "fixed", "gather", "identity", "mlp", "scalar", "softmax", "strings"]

VALUES = {
    "BOOL": [True, False, True],
    "UINT8": [0, 7, 2**8 - 1],
    "UINT16": [0, 7, 2**16 - 1],
    "UINT32": [0, 7, 2**32 - 1],
    "UINT64": [0, 7, 2**64 - 1],
    "INT8": [-(2**7), 0, 2**7 - 1],
    "INT16": [-(2**15), 0, 2**15 - 1],
    "INT32": [-(2**31), 0, 2**31 - 1],
    "INT64": [-(2**63), 0, 2**63 - 1],
    "FP16": [-1.5, 0.0, 65504.0],
    "BF16": [-1.5, 0.0, 3.0e38],
    "FP32": [-1.5, 1e-45, 3.4e38],
    "FP64": [-1.5, 5e-324, 1.7e308],
    "BYTES": ["", "grüezi", "a" * 1000],
}
# These have no form in JSON.
BINARY_ONLY = ("FP16", "BF16")


@pytest.fixture(scope="module")
def tensors(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Muster]:
    folder = tmp_path_factory.mktemp("tensors")
    repository = folder / "repository"
    repository.mkdir()
    for model in MODELS:
        (repository / model).symlink_to(REPOSITORY / model)
    flags = ["--model-repository", str(repository), "--grpc-port", "0"]
    with Muster(binary, folder / "stderr", *flags) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def http(tensors: Muster) -> Iterator[triton_http.InferenceServerClient]:
    with triton_http.InferenceServerClient(tensors.url.removeprefix("http://"), network_timeout=REQUEST_S) as client:
        yield client


@pytest.fixture(scope="module")
def grpc(tensors: Muster) -> Iterator[triton_grpc.InferenceServerClient]:
    with triton_grpc.InferenceServerClient(tensors.grpc_address) as client:
        yield client


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest):
    """One client after the other, with the module that its tensors come from."""
    module = {"http": triton_http, "grpc": triton_grpc}[request.param]
    return request.getfixturevalue(request.param), module


def array(datatype: str, shape: tuple[int, ...] = (3,)) -> np.ndarray:
    kind = np.object_ if datatype == "BYTES" else triton_to_np_dtype(datatype)
    return np.resize(np.array(VALUES[datatype], dtype=kind), shape)


def tensor(module, name: str, datatype: str, values: np.ndarray, **options):
    given = module.InferInput(name, list(values.shape), datatype)
    given.set_data_from_numpy(values, **options)
    return given


def every_datatype(module, shape: tuple[int, ...], **options):
    return [tensor(module, f"in_{name}", name, array(name, shape), **options) for name in VALUES]


def check_every_datatype(result, shape: tuple[int, ...]) -> None:
    for datatype in VALUES:
        given, wanted = result.as_numpy(f"out_{datatype}"), array(datatype, shape)
        assert given.shape == wanted.shape, datatype
        if datatype == "BYTES":
            # tritonclient gives text where JSON held it, and bytes where binary data did.
            given = np.array([text if isinstance(text, str) else text.decode() for text in given.ravel()], dtype=np.object_)
            given = given.reshape(shape)
        np.testing.assert_array_equal(given, wanted, err_msg=datatype)


@pytest.mark.parametrize("count", [3, 1, 0, 10_000])
def test_every_datatype_comes_back_as_it_was_sent(client, count: int):
    client, module = client
    result = client.infer("identity", every_datatype(module, (count,)))
    check_every_datatype(result, (count,))


def test_every_datatype_that_json_can_say_comes_back_as_it_was_sent(http):
    inputs = [
        tensor(triton_http, f"in_{name}", name, array(name), binary_data=name in BINARY_ONLY) for name in VALUES
    ]
    outputs = [triton_http.InferRequestedOutput(f"out_{name}", binary_data=name in BINARY_ONLY) for name in VALUES]
    check_every_datatype(http.infer("identity", inputs, outputs=outputs), (3,))


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_bodies_may_be_compressed(http, coding: str):
    result = http.infer(
        "identity",
        every_datatype(triton_http, (100,)),
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    check_every_datatype(result, (100,))


def test_async_clients_get_the_same(tensors: Muster):
    async def by(module, aio, address: str) -> None:
        async with aio.InferenceServerClient(address) as client:
            assert await client.is_model_ready("identity")
            asked = [client.infer("identity", every_datatype(module, (count,))) for count in range(1, 9)]
            for count, result in enumerate(await asyncio.gather(*asked), 1):
                check_every_datatype(result, (count,))
            with pytest.raises(InferenceServerException, match="nothing"):
                await client.infer("nothing", every_datatype(module, (1,)))

    asyncio.run(by(triton_http, triton_http_aio, tensors.url.removeprefix("http://")))
    asyncio.run(by(triton_grpc, triton_grpc_aio, tensors.grpc_address))


def test_requests_in_the_background_and_streams_are_answered(http, grpc):
    waiting = [http.async_infer("identity", every_datatype(triton_http, (count,))) for count in (1, 2, 3)]
    for count, asked in enumerate(waiting, 1):
        check_every_datatype(asked.get_result(), (count,))

    answers: queue.Queue = queue.Queue()
    grpc.start_stream(lambda result, error: answers.put((result, error)))
    for index in (1, 2, 99, 3):
        values = np.array([index], dtype=np.int64)
        grpc.async_stream_infer("gather", [tensor(triton_grpc, "index", "INT64", values)], request_id=str(index))
    given = [answers.get(timeout=REQUEST_S) for _ in range(4)]
    grpc.stop_stream()
    told = [(result.get_response().id, float(result.as_numpy("y")[0])) for result, error in given if error is None]
    assert told == [("1", 10.0), ("2", 20.0), ("3", 30.0)]
    (error,) = [error for _, error in given if error is not None]
    assert "99" in error.message() or "indices" in error.message()


def test_scalars_requested_outputs_ids_and_versions(client):
    client, module = client
    one = tensor(module, "x", "FP32", np.array(21, dtype=np.float32))
    assert client.infer("scalar", [one]).as_numpy("y").reshape(()) == 42

    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    inputs = [tensor(module, name, "FP32", rows) for name in ("a", "b")]
    result = client.infer("add", inputs, outputs=[module.InferRequestedOutput("sum")], request_id="mine")
    np.testing.assert_array_equal(result.as_numpy("sum"), rows * 2)
    assert result.as_numpy("difference") is None
    response = result.get_response()
    assert (response["id"] if isinstance(response, dict) else response.id) == "mine"

    ones = tensor(module, "x", "FP32", np.ones((1, 4), dtype=np.float32))
    first, second, newest = (client.infer("mlp", [ones], model_version=it).as_numpy("scores") for it in ("1", "2", ""))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(second, newest)


def test_classes_are_told_by_name(client):
    client, module = client
    ones = tensor(module, "x", "FP32", np.ones((2, 4), dtype=np.float32))
    scores = client.infer("mlp", [ones]).as_numpy("scores")
    result = client.infer("mlp", [ones], outputs=[module.InferRequestedOutput("scores", class_count=2)])
    classes = result.as_numpy("scores")
    assert classes.shape == (2, 2)
    labels = ["cat", "dog", "bird"]
    for row, told in zip(scores, classes):
        best = np.argsort(-row)[:2]
        assert [text.decode().split(":")[1:] for text in told] == [[str(it), labels[it]] for it in best]


def test_what_a_server_and_its_models_say_of_themselves(http, grpc):
    assert http.is_server_live() and grpc.is_server_live()
    assert http.is_server_ready() and grpc.is_server_ready()
    assert http.is_model_ready("mlp") and grpc.is_model_ready("mlp", "1")
    assert not http.is_model_ready("nothing") and not grpc.is_model_ready("nothing")
    assert not http.is_model_ready("mlp", "7")

    by_http, by_grpc = http.get_server_metadata(), grpc.get_server_metadata(as_json=True)
    assert by_http == by_grpc and by_http["name"] == "muster"
    assert {"binary_tensor_data", "statistics", "model_configuration"} <= set(by_http["extensions"])

    by_http, by_grpc = http.get_model_metadata("add"), grpc.get_model_metadata("add", as_json=True)
    assert by_http["inputs"] == [
        {"name": name, "datatype": "FP32", "shape": [-1, 3]} for name in ("a", "b")
    ]
    assert by_grpc["inputs"][0] == {"name": "a", "datatype": "FP32", "shape": ["-1", "3"]}
    assert http.get_model_metadata("mlp")["versions"] == ["1", "2"]

    config = http.get_model_config("mlp")
    assert config["max_batch_size"] == 8 and config["dynamic_batching"]["preferred_batch_size"] == [4, 8]
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert grpc.get_model_config("mlp").config.max_batch_size == 8

    index = {(it["name"], it["state"]) for it in http.get_model_repository_index()}
    assert {(model, "READY") for model in MODELS} <= index
    assert {model.name for model in grpc.get_model_repository_index().models} >= set(MODELS)


def test_runs_are_counted(http, grpc):
    def count() -> tuple[int, int]:
        (of_one,) = http.get_inference_statistics("fixed")["model_stats"]
        return of_one["inference_count"], of_one["inference_stats"]["success"]["count"]

    before = count()
    for _ in range(3):
        http.infer("fixed", [tensor(triton_http, "x", "FP32", np.ones((2, 3), dtype=np.float32))])
    assert np.subtract(count(), before).tolist() == [3, 3]
    stats = grpc.get_inference_statistics("fixed").model_stats
    assert stats[0].inference_stats.success.count == count()[1] and stats[0].inference_stats.compute_infer.ns > 0
    assert len(http.get_inference_statistics()["model_stats"]) >= len(MODELS)


ROWS = np.ones((2, 3), dtype=np.float32)


@pytest.mark.parametrize(
    ("model", "inputs", "options", "words"),
    [
        ("nothing", {"x": ("FP32", ROWS)}, {}, ["nothing"]),
        ("mlp", {"x": ("FP32", ROWS)}, {"model_version": "7"}, ["7", "1, 2"]),
        ("fixed", {}, {}, ["x"]),
        ("fixed", {"y": ("FP32", ROWS)}, {}, ["`y`", "x"]),
        ("fixed", {"x": ("FP32", ROWS), "z": ("FP32", ROWS)}, {}, ["`z`"]),
        ("fixed", {"x": ("INT32", ROWS.astype(np.int32))}, {}, ["x", "INT32", "FP32"]),
        ("fixed", {"x": ("FP32", ROWS[0])}, {}, ["x", "[3]", "[2, 3]"]),
        ("fixed", {"x": ("FP32", np.ones((2, 4), dtype=np.float32))}, {}, ["x", "[2, 4]", "[2, 3]"]),
        ("add", {"a": ("FP32", ROWS), "b": ("FP32", np.ones((2, 9), dtype=np.float32))}, {}, ["b", "[2, 9]", "3]"]),
        ("strings", {it: ("BYTES", np.array([b"\xff\xfe"], dtype=np.object_)) for it in ("left", "right")}, {}, ["UTF-8"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_request_that_does_not_fit_says_what_was_given_and_what_is_wanted(client, model, inputs, options, words):
    client, module = client
    given = [tensor(module, name, datatype, values) for name, (datatype, values) in inputs.items()]
    with pytest.raises(InferenceServerException) as refused:
        client.infer(model, given, **options)
    assert all(word in refused.value.message() for word in words), refused.value.message()
    expected = ["404", "StatusCode.NOT_FOUND"] if "nothing" in words or options else ["400", "StatusCode.INVALID_ARGUMENT"]
    assert refused.value.status() in expected


def test_an_unknown_output_is_refused_by_name(client):
    client, module = client
    with pytest.raises(InferenceServerException, match="`nothing`"):
        client.infer(
            "fixed", [tensor(module, "x", "FP32", ROWS)], outputs=[module.InferRequestedOutput("nothing")]
        )


def test_a_model_that_fails_in_one_request_serves_the_next(client):
    client, module = client

    def ask(index: int) -> float:
        values = np.array([index], dtype=np.int64)
        return float(client.infer("gather", [tensor(module, "index", "INT64", values)]).as_numpy("y")[0])

    for _ in range(3):
        with pytest.raises(InferenceServerException) as failed:
            ask(99)
        assert failed.value.status() in ("500", "StatusCode.INTERNAL")
        assert "/" not in failed.value.message().replace("node/", ""), failed.value.message()
        assert ask(3) == 30


def test_models_are_not_loaded_by_strangers(client):
    client, _ = client
    for call in client.load_model, client.unload_model:
        with pytest.raises(InferenceServerException, match="--allow-model-control"):
            call("mlp")


def test_what_is_not_there_is_refused_by_name(client):
    client, _ = client
    for call in client.get_trace_settings, client.get_log_settings, client.get_system_shared_memory_status:
        with pytest.raises(InferenceServerException) as refused:
            call()
        assert "muster" in refused.value.message(), refused.value.message()


def post(url: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"} | headers)
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_S) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def x(**fields) -> dict:
    return {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": [[1, 2, 3], [4, 5, 6]]} | fields


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: {"inputs": "x"}, ["expected a list of tensors"]),
        (lambda: {"inputs": []}, ["`x` is missing"]),
        (lambda: {"inputs": [x(datatype="FLOAT")]}, ["`x`", "FLOAT", "FP32"]),
        (lambda: {"inputs": [x(shape=[2, -3])]}, ["`x`", "-3"]),
        (lambda: {"inputs": [x(shape=[2, 4])]}, ["x", "8", "6"]),
        (lambda: {"inputs": [x(shape=[2**40, 2**40])]}, ["`x`", str(2**40)]),
        (lambda: {"inputs": [x(data=[1, 2, "three", 4, 5, 6])]}, ["`x`", "three"]),
        (lambda: {"inputs": [x(data=None)]}, ["`x`", "`data`"]),
        (lambda: {"inputs": [x(), x()]}, ["x"]),
        (lambda: {"inputs": [x(parameters={"binary_data_size": 24})]}, ["binary"]),
        (lambda: {"inputs": [x()] * 10_000}, ["more than 1024 tensors"]),
    ],
)
def test_a_body_that_is_wrong_says_where(tensors: Muster, change: Callable[[], dict], words: list[str]):
    status, body = post(f"{tensors.url}/v2/models/fixed/infer", json.dumps(change()).encode(), {})
    assert status == 400 and list(body) == ["error"], body
    assert all(word in body["error"] for word in words), body
    good = post(f"{tensors.url}/v2/models/fixed/infer", json.dumps({"inputs": [x()]}).encode(), {})
    assert good[0] == 200, good


@pytest.mark.parametrize("size", [23, 25, 2**40, -1])
def test_binary_data_must_have_the_size_that_it_is_said_to_have(tensors: Muster, size: int):
    given = x(parameters={"binary_data_size": size})
    del given["data"]
    head = json.dumps({"inputs": [given]}).encode()
    status, body = post(
        f"{tensors.url}/v2/models/fixed/infer", head + bytes(24), {"Inference-Header-Content-Length": str(len(head))}
    )
    assert status == 400 and ("`x`" in body["error"] or "inputs[0]" in body["error"]), body


def test_models_tell_what_they_can_do(tensors: Muster):
    with tensors.client() as client:
        models = {model.id: model for model in client.models.list()}
    assert models["mlp"].kind == "tensor"
    assert models["mlp"].endpoints == ["/v2/models/mlp/infer"]


# KServe's protocol, route by route: method, path, status.
ROUTES = [
    ("GET", "/v2", 200),
    ("GET", "/v2/health/live", 200),
    ("GET", "/v2/health/ready", 200),
    ("GET", "/v2/models/mlp", 200),
    ("GET", "/v2/models/mlp/versions/1", 200),
    ("GET", "/v2/models/mlp/versions/9", 404),
    ("GET", "/v2/models/mlp/ready", 200),
    ("GET", "/v2/models/mlp/versions/2/ready", 200),
    ("GET", "/v2/models/mlp/config", 200),
    ("GET", "/v2/models/mlp/versions/1/config", 200),
    ("GET", "/v2/models/mlp/stats", 200),
    ("GET", "/v2/models/mlp/versions/1/stats", 200),
    ("GET", "/v2/models/stats", 200),
    ("POST", "/v2/repository/index", 200),
    ("GET", "/v2/models/nothing", 404),
    ("GET", "/v2/nothing", 404),
    ("GET", "/v2/models/mlp/infer", 405),
]


@pytest.mark.parametrize(("method", "path", "wanted"), ROUTES)
def test_every_route_answers(tensors: Muster, method: str, path: str, wanted: int):
    request = urllib.request.Request(tensors.url + path, b"{}" if method == "POST" else None, method=method)
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_S) as answer:
            status, body = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, body = error.code, error.read()
        assert list(json.loads(body)) == ["error"]
    assert status == wanted, body

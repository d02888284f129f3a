"""The worker protocol over gRPC, spoken by gRPC's own Python client with code made from `muster.proto`."""

import importlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import grpc
import pytest
from grpc_tools import protoc

from muster import CHAT, EMBEDDING, REQUEST_S, SHUTDOWN_S, STARTUP_S, eventually

PROTO = Path(__file__).parents[2] / "shared/proto"
TOKEN = "fleet-token"


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """What gRPC's compiler makes of the definition."""
    folder = str(tmp_path_factory.mktemp("proto"))
    arguments = ["protoc", f"-I{PROTO}", f"--python_out={folder}", f"--grpc_python_out={folder}", "muster.proto"]
    assert protoc.main(arguments) == 0
    sys.path.insert(0, folder)
    yield importlib.import_module("muster_pb2")
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def channel(binary: Path) -> Iterator[grpc.Channel]:
    """A channel to a worker with the demo models and a token."""
    flags = ["--no-register", "--port", "0", "--grpc-port", "0", "--fleet-token", TOKEN]
    worker = subprocess.Popen([binary, "worker", *flags], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    found, known = SimpleNamespace(address=None), threading.Event()

    def read():
        for line in worker.stdout:
            if address := re.search(r"gRPC on http://(127\.0\.0\.1:\d+)", line):
                found.address = address[1]
                known.set()
        known.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert known.wait(STARTUP_S) and found.address
        with grpc.insecure_channel(found.address) as channel:
            yield channel
    finally:
        worker.terminate()
        worker.wait(SHUTDOWN_S)
        reader.join(SHUTDOWN_S)


@pytest.fixture(scope="module")
def worker(channel: grpc.Channel, messages: ModuleType):
    """The worker's stub, when its models are loaded."""
    stub = importlib.import_module("muster_pb2_grpc").WorkerStub(channel)

    def ready() -> bool:
        try:
            return bool(stub.Models(messages.ModelsRequest(), **call()).models)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE, error
            return False

    eventually(ready, "the models are loaded", STARTUP_S)
    return stub


def call(token: str = TOKEN) -> dict:
    return {"metadata": [("authorization", f"Bearer {token}")], "timeout": REQUEST_S}


def question(messages: ModuleType, text: str, **more):
    chat = messages.Chat(messages=[messages.Message(role="user", content=text)])
    return messages.GenerateRequest(model=CHAT, chat=chat, sampling=messages.Sampling(temperature=0), **more)


def problem(messages: ModuleType, error: grpc.RpcError):
    """What the worker says of its refusal in its own words."""
    return messages.Problem.FromString(dict(error.trailing_metadata())["muster-problem-bin"])


def test_the_models_are_told(worker, messages: ModuleType):
    models = worker.Models(messages.ModelsRequest(), **call()).models
    assert {model.name: model.kind for model in models} == {
        CHAT: messages.MODEL_KIND_GENERATE,
        EMBEDDING: messages.MODEL_KIND_EMBED,
    }
    assert models[0].context_length == 2048 and models[0].capacity.running > 0


def test_an_answer_comes_as_events(worker, messages: ModuleType):
    request = question(messages, "What is the capital of France?", logprobs=2)
    events = list(worker.Generate(request, **call()))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started" and kinds[-2:] == ["finished", "done"]
    deltas = [event.delta for event in events if event.WhichOneof("event") == "delta"]
    assert "".join(delta.text for delta in deltas) == "The capital of France is Paris."
    assert all(len(delta.logprobs) == len(delta.tokens) for delta in deltas)
    assert events[-2].finished.reason == messages.FINISH_REASON_STOP
    usage = events[-1].done.usage
    assert usage.prompt_tokens == events[0].started.prompt_tokens and usage.completion_tokens > 0


def test_what_is_left_out_is_as_usual(worker, messages: ModuleType):
    request = messages.GenerateRequest(model=CHAT, text="Once", max_tokens=2)
    events = list(worker.Generate(request, **call()))
    assert [event.WhichOneof("event") for event in events][-1] == "done"
    assert events[-1].done.usage.completion_tokens <= 2


def test_vectors_are_of_length_one(worker, messages: ModuleType):
    inputs = [messages.EmbedInput(text="a quick fox"), messages.EmbedInput(tokens=messages.TokenIds(ids=[1000, 1001]))]
    response = worker.Embed(messages.EmbedRequest(model=EMBEDDING, inputs=inputs, dimensions=64), **call())
    assert [len(vector.numbers) for vector in response.vectors] == [64, 64]
    assert [sum(x * x for x in vector.numbers) for vector in response.vectors] == pytest.approx([1, 1], abs=1e-3)


def test_refusals_have_codes_and_problems(worker, messages: ModuleType):
    text = messages.GenerateRequest(model=CHAT, text="hi")
    for request, token, code, kind, part in [
        (text, "wrong", "UNAUTHENTICATED", "PROBLEM_KIND_BAD_KEY", "token is wrong"),
        (question(messages, "word " * 3000), TOKEN, "INVALID_ARGUMENT", "PROBLEM_KIND_PROMPT_TOO_LONG", "2048"),
        (messages.GenerateRequest(model=CHAT), TOKEN, "INVALID_ARGUMENT", "PROBLEM_KIND_INVALID", "prompt"),
        (messages.GenerateRequest(model="x", text="hi"), TOKEN, "NOT_FOUND", "PROBLEM_KIND_UNKNOWN_MODEL", "x"),
        (messages.GenerateRequest(model=CHAT, text="a" * (9 << 20)), TOKEN, "OUT_OF_RANGE", "PROBLEM_KIND_TOO_LARGE", "long"),
    ]:
        with pytest.raises(grpc.RpcError) as refused:
            list(worker.Generate(request, **call(token)))
        found = problem(messages, refused.value)
        assert refused.value.code().name == code
        assert found.kind == messages.ProblemKind.Value(kind) and part in found.message
        assert refused.value.details() and found.message.startswith(refused.value.details()[:200])


def test_a_call_that_is_cancelled_ends(worker, messages: ModuleType):
    request = messages.GenerateRequest(model=CHAT, text="Once", ignore_eos=True, max_tokens=2000)
    events = worker.Generate(request, **call())
    next(events)
    events.cancel()
    with pytest.raises(grpc.RpcError) as ended:
        list(events)
    assert ended.value.code() == grpc.StatusCode.CANCELLED

"""A request is one trace, from the client's own span to the worker's steps, as a real collector has it."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster import CHAT, EMBEDDING, eventually
from watching import API_KEY, FLEET_TOKEN, Collector, Fleet, Process, post

# Spans of a chat, with the name of the span that each follows from.
CHAIN = {
    "dispatch": "request",
    "choose a worker": "dispatch",
    "attempt": "request",
    "worker": "attempt",
    "queue": "worker",
    "prefill": "worker",
    "decode": "worker",
}


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    with Collector(tmp_path_factory.mktemp("collector")) as collector:
        yield collector


@pytest.fixture(scope="module", params=["http", "grpc"])
def traced(
    request: pytest.FixtureRequest, binary: Path, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    with Fleet(binary, tmp_path_factory.mktemp("traced"), common=["--otlp-endpoint", collector.url]) as fleet:
        grpc = ["--grpc-port", "0"] if request.param == "grpc" else []
        fleet.add(f"traced-{request.param}", "--transport", request.param, *grpc)
        fleet.wait_for(CHAT)
        yield fleet


def chat(stream: bool) -> bytes:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    return json.dumps({"model": CHAT, "messages": messages, "stream": stream, "temperature": 0}).encode()


def called(span) -> str:
    """What a span is, whatever the transport and the model."""
    if span.name.startswith("chat "):
        return "request"
    return "worker" if span.name.startswith("/") else span.name


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_is_one_joined_trace(traced: Fleet, collector: Collector, stream: bool):
    trace, client = secrets.token_hex(16), secrets.token_hex(8)
    headers = {"traceparent": f"00-{trace}-{client}-01", "tracestate": "vendor=1"}
    status, body = post(f"{traced.gateway}/v1/chat/completions", chat(stream), API_KEY, **headers)
    assert status == 200, body
    eventually(lambda: len(collector.trace(trace)) >= len(CHAIN) + 1, "the whole trace has come", 30)
    spans = {called(span): (service, span) for service, span in collector.trace(trace)}
    assert spans.keys() == {"request", *CHAIN}, [span.name for _, span in collector.trace(trace)]
    assert len(collector.trace(trace)) == len(spans), "each of them once"
    for name, parent in CHAIN.items():
        assert spans[name][1].parent_span_id == spans[parent][1].span_id, f"{name} follows from {parent}"
    request = spans["request"][1]
    assert request.parent_span_id.hex() == client and request.trace_state == "vendor=1"
    services = {name: service for name, (service, _) in spans.items()}
    assert services["request"] == services["attempt"] == "muster-gateway"
    assert services["choose a worker"] == "muster-controller"
    assert services["worker"] == services["decode"] == "muster-worker"
    said = {pair.key: pair.value for pair in request.attributes}
    assert said["gen_ai.operation.name"].string_value == "chat"
    assert said["gen_ai.response.model"].string_value == CHAT
    assert said["gen_ai.usage.output_tokens"].int_value > 0
    times = [spans[name][1] for name in ["queue", "prefill", "decode"]]
    assert all(one.end_time_unix_nano <= next.start_time_unix_nano + 1_000_000 for one, next in zip(times, times[1:]))
    assert all(span.end_time_unix_nano >= span.start_time_unix_nano for span in times)


def test_the_log_names_the_trace_and_a_bad_context_begins_a_new_one(traced: Fleet, collector: Collector):
    name = f"bad-context-{secrets.token_hex(4)}"
    headers = {"traceparent": "00-" + "0" * 32 + "-b7ad6b7169203331-01", "x-request-id": name}
    body = json.dumps({"model": EMBEDDING, "input": "hello"}).encode()
    assert post(f"{traced.gateway}/v1/embeddings", body, API_KEY, **headers)[0] == 200
    gateway = traced.processes[1]
    trace = gateway.said(rf'request_id={name} .*trace_id="([0-9a-f]{{32}})"')
    assert trace != "0" * 32
    eventually(lambda: len(collector.trace(trace)) >= 5, "the new trace has come", 30)
    roots = [span for _, span in collector.trace(trace) if not span.parent_span_id]
    assert [span.name for span in roots] == [f"embeddings {EMBEDDING}"]


def test_what_the_client_does_not_sample_is_not_sent(traced: Fleet, collector: Collector):
    trace, other = secrets.token_hex(16), secrets.token_hex(16)
    for trace_id, flag in [(trace, "00"), (other, "01")]:
        headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-{flag}"}
        assert post(f"{traced.gateway}/v1/chat/completions", chat(False), API_KEY, **headers)[0] == 200
    eventually(lambda: len(collector.trace(other)) >= len(CHAIN) + 1, "the later one has come", 30)
    assert not collector.trace(trace)


def test_an_endpoint_that_is_down_costs_no_request_and_is_told_of_once(binary: Path, tmp_path: Path):
    flags = ["--otlp-endpoint", "http://127.0.0.1:9"]
    with Fleet(binary, tmp_path, common=flags) as fleet:
        fleet.add("alone")
        fleet.wait_for(CHAT)
        warning = "traces cannot be sent"
        for _ in range(3):
            assert post(f"{fleet.gateway}/v1/chat/completions", chat(False), API_KEY)[0] == 200
        gateway = fleet.processes[1]
        eventually(lambda: warning in gateway.text(), "the gateway says so", 30)
        assert post(f"{fleet.gateway}/v1/chat/completions", chat(False), API_KEY)[0] == 200
    assert gateway.process.returncode == 0, "it ends all the same"
    assert gateway.text().count(warning) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_trace_goes_through_a_server_that_speaks_openais_api(
    binary: Path, tmp_path: Path, collector: Collector, stream: bool
):
    flags = ["--otlp-endpoint", collector.url]
    with Fleet(binary, tmp_path, common=flags) as fleet:
        up = fleet.start("up", "up", "--host", "127.0.0.1", "--port", "0", "--controller-port", "0", "--worker-port", "0")
        server = up.said(r"OpenAI API at (http://127\.0\.0\.1:\d+)")
        known = ["--controller-address", fleet.controller, "--fleet-token", FLEET_TOKEN, "--id", "attached"]
        attach = Process("attach", [binary, "attach", server, *known], tmp_path)
        fleet.processes.append(attach.__enter__())
        fleet.wait_for(CHAT)
        trace, client = secrets.token_hex(16), secrets.token_hex(8)
        headers = {"traceparent": f"00-{trace}-{client}-01"}
        assert post(f"{fleet.gateway}/v1/chat/completions", chat(stream), API_KEY, **headers)[0] == 200
        wanted = 4 + len(CHAIN) + 1
        eventually(lambda: len(collector.trace(trace)) >= wanted, "both gateways' spans have come", 30)
    spans = collector.trace(trace)
    outer = next(span for service, span in spans if service == "muster-gateway" and called(span) == "attempt")
    inner = next(span for service, span in spans if service == "muster" and called(span) == "request")
    assert inner.parent_span_id == outer.span_id

"""Nothing that can be read of a fleet holds a key, a prompt or an answer, whatever goes wrong and however much is logged."""

import http.client
import json
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster import CHAT, EMBEDDING, eventually
from watching import ADMIN_KEY, API_KEY, FLEET_TOKEN, OPENAI_KEY, Collector, Fleet, get, post

# The prompt brings about this answer, which the demo model gives word for word.
PROMPT, ANSWER = "What is the capital of France?", "Paris"
CANARY = "CANARYPROMPT"
SECRETS = [API_KEY, FLEET_TOKEN, ADMIN_KEY, OPENAI_KEY]


def body(text: str, **more: object) -> bytes:
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": CHAT, "messages": messages, "max_tokens": 40} | more).encode()


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    with Collector(tmp_path_factory.mktemp("collector")) as collector:
        yield collector


def live(fleet: Fleet) -> list[str]:
    """A life with every kind of error; gives what clients were told of errors, and what operators can look at."""
    chat = f"{fleet.gateway}/v1/chat/completions"
    _, answered = post(chat, body(PROMPT, temperature=0), API_KEY)
    answers.append(json.loads(answered)["choices"][0]["message"]["content"])
    assert post(chat, body(PROMPT, stream=True), API_KEY)[0] == 200
    text = json.dumps({"model": EMBEDDING, "input": CANARY}).encode()
    assert post(f"{fleet.gateway}/v1/embeddings", text, API_KEY)[0] == 200
    told = []
    for request, key, status in [
        (body(CANARY), API_KEY, 200),
        (body(PROMPT)[:-2], API_KEY, 400),
        (body(PROMPT, stop={CANARY: 1}), API_KEY, 400),
        (body(PROMPT, temperature="hot"), API_KEY, 400),
        (body(PROMPT, max_tokens=10**6), API_KEY, 400),
        (body(CANARY * 3000), API_KEY, 400),
        (body(PROMPT, model="nobody-serves-this"), API_KEY, 404),
        (body(PROMPT), API_KEY + "-wrong", 401),
        (body(PROMPT), FLEET_TOKEN, 401),
        (body(PROMPT), None, 401),
    ]:
        given, said = post(chat, request, key)
        assert given == status, (given, said)
        told.append(said)
    for path in ["register", "drain", "resume", "deregister", "dispatch", "release", "heartbeat"]:
        for key in [None, API_KEY, FLEET_TOKEN + "-wrong"]:
            given, said = post(f"{fleet.controller}/{path}", b'{"id":"x"}', key)
            assert given in (401, 403), (path, given, said)
            told.append(said)
    told.append(break_off(fleet))
    for path in ["fleet", "topology", "journal", "metrics"]:
        told.append(get(f"{fleet.controller}/{path}", ADMIN_KEY))
    told.append(first_event(fleet))
    told += [get(f"{fleet.gateway}/metrics"), get(f"{fleet.gateway}/v1/models", API_KEY)]
    told += [get(f"{address}/{path}", FLEET_TOKEN) for _, address in fleet.workers.values() for path in ["metrics"]]
    return told


answers: list[str] = []


def break_off(fleet: Fleet) -> str:
    """Kills a worker while it answers; gives what the client hears after that, less the answer."""
    name = fleet.add("doomed")
    post(f"{fleet.controller}/drain", json.dumps({"id": "steady"}).encode(), ADMIN_KEY)
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(fleet.gateway).netloc, timeout=60)
    request = body("Tell me a story about a fox.", stream=True, max_tokens=900, ignore_eos=True)
    connection.request("POST", "/v1/chat/completions", request, {"authorization": f"Bearer {API_KEY}"})
    answer = connection.getresponse()
    assert answer.status == 200 and answer.read(100), name
    worker, _ = fleet.workers.pop("doomed")
    worker.kill()
    post(f"{fleet.controller}/resume", json.dumps({"id": "steady"}).encode(), ADMIN_KEY)
    rest = answer.read().decode(errors="replace")
    connection.close()
    return "".join(line for line in rest.splitlines() if '"error"' in line)


def first_event(fleet: Fleet) -> str:
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(fleet.controller).netloc, timeout=60)
    connection.request("GET", "/events", headers={"authorization": f"Bearer {ADMIN_KEY}"})
    answer = connection.getresponse()
    assert answer.status == 200
    said = answer.read1(1 << 20).decode()
    connection.close()
    assert '"steady"' in said
    return said


def printed(binary: Path) -> str:
    """What `--print-config` says of keys that are given in every way."""
    common = ["--print-config", "--fleet-token", FLEET_TOKEN, "--otlp-headers", f"key={API_KEY}"]
    verbs = [["controller", "--admin-key", ADMIN_KEY], ["worker"], ["gateway", "--api-key", API_KEY]]
    verbs[2] += ["--openai-key", OPENAI_KEY]
    runs = [subprocess.run([binary, *verb, *common], capture_output=True, text=True) for verb in verbs]
    assert all(run.returncode == 0 and "***" in run.stdout for run in runs), [run.stderr for run in runs]
    return "".join(run.stdout + run.stderr for run in runs)


def lives(binary: Path, folder: Path, collector: Collector, *gateway: str, log_format: str) -> tuple[str, str]:
    """What a life leaves in logs, and elsewhere."""
    answers.clear()
    common = ["--log", "debug", "--log-format", log_format, "--otlp-endpoint", collector.url]
    begin = len(collector.raw)
    with Fleet(binary, folder, common=common, gateway=list(gateway)) as fleet:
        fleet.add("steady")
        fleet.wait_for(CHAT)
        told = live(fleet)
    eventually(lambda: any(b"muster.request_id" in raw for raw in collector.raw[begin:]), "traces have come", 30)
    traces = [raw.decode(errors="replace") for raw in collector.raw[begin:]]
    logs = [process.text() for process in fleet.processes]
    return "\n".join(logs), "\n".join(told + traces + [printed(binary)])


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_neither_keys_nor_prompts_nor_answers_can_be_read(
    binary: Path, tmp_path: Path, collector: Collector, log_format: str
):
    logs, elsewhere = lives(binary, tmp_path, collector, log_format=log_format)
    assert "muster::access" in logs and "DEBUG" in logs and "an attempt failed" in logs
    assert ANSWER in answers[0], "the answer that is looked for"
    for secret in [*SECRETS, CANARY, PROMPT, ANSWER]:
        for name, text in [("logs", logs), ("elsewhere", elsewhere)]:
            place = text.find(secret)
            assert place < 0, f"{secret} in {name}: …{text[max(0, place - 300) : place + 100]}…"


def test_prompts_are_logged_where_the_operator_says_so_and_keys_never(
    binary: Path, tmp_path: Path, collector: Collector
):
    logs, elsewhere = lives(binary, tmp_path, collector, "--log-prompts", log_format="json")
    assert CANARY in logs and CANARY not in elsewhere
    assert all(secret not in logs + elsewhere for secret in SECRETS)
    lines = [json.loads(line) for line in logs.splitlines() if '"muster::access"' in line]
    assert max(len(line["fields"].get("prompt", "")) for line in lines) <= 4096


def test_without_the_access_log_there_is_none(binary: Path, tmp_path: Path):
    with Fleet(binary, tmp_path, gateway=["--access-log", "off"]) as fleet:
        fleet.add("steady")
        fleet.wait_for(CHAT)
        headers = {"x-muster-log-prompts": "true", "x-log-prompts": "1"}
        assert post(f"{fleet.gateway}/v1/chat/completions", body(PROMPT), API_KEY, **headers)[0] == 200
    assert "muster::access" not in fleet.processes[1].text()

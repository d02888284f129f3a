"""What is measured: Prometheus' own tools read it, every query of the dashboard finds data, and the document is true."""

import http.client
import json
import math
import os
import re
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster import CHAT, EMBEDDING, eventually
from watching import API_KEY, Fleet, Process, free_port, get, post

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "scripts/monitoring"
SERVICES = ["gateway", "controller", "worker"]


@pytest.fixture(scope="module")
def promtool() -> str:
    found = [shutil.which(program) for program in ("prometheus", "promtool")]
    if not all(found) and not os.environ.get("CI"):
        pytest.skip("prometheus and promtool are not installed (on Debian: apt-get install prometheus)")
    assert all(found), "CI has no prometheus or no promtool"
    return found[1]


@pytest.fixture(scope="module")
def fleet(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(binary, tmp_path_factory.mktemp("watched")) as fleet:
        fleet.add("watched")
        fleet.wait_for(CHAT)
        traffic(fleet)
        for service, name in [("controller", "muster_controller_heartbeats"), ("worker", "muster_worker_heartbeats")]:
            eventually(lambda: f"\n{name}_total" in get(f"{address(fleet, service)}/metrics"), "a heartbeat was sent")
        yield fleet


def traffic(fleet: Fleet) -> None:
    """Some of everything: answers, whole and streamed, and errors of several kinds."""
    chat = {"model": CHAT, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    for body in [chat, chat | {"stream": True}, chat | {"max_tokens": 3}]:
        assert post(f"{fleet.gateway}/v1/chat/completions", json.dumps(body).encode(), API_KEY)[0] == 200
    completion = json.dumps({"model": CHAT, "prompt": "Once", "max_tokens": 8}).encode()
    assert post(f"{fleet.gateway}/v1/completions", completion, API_KEY)[0] == 200
    embedding = json.dumps({"model": EMBEDDING, "input": ["a", "b"]}).encode()
    assert post(f"{fleet.gateway}/v1/embeddings", embedding, API_KEY)[0] == 200
    assert post(f"{fleet.gateway}/v1/chat/completions", b"{", API_KEY)[0] == 400
    assert post(f"{fleet.gateway}/v1/chat/completions", b"{}", "wrong")[0] == 401
    nobody = json.dumps(chat | {"model": "client-text-that-is-no-label"}).encode()
    assert post(f"{fleet.gateway}/v1/chat/completions", nobody, API_KEY)[0] == 404
    get(f"{fleet.gateway}/v1/models", API_KEY)


def address(fleet: Fleet, service: str) -> str:
    return {"gateway": fleet.gateway, "controller": fleet.controller}.get(service) or fleet.workers["watched"][1]


def shown(fleet: Fleet) -> dict[str, str]:
    """The type of every metric of the three services."""
    text = "".join(get(f"{address(fleet, service)}/metrics") for service in SERVICES)
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    helped = set(re.findall(r"^# HELP (\S+) .+$", text, re.M))
    assert types.keys() == helped, f"without a description: {types.keys() ^ helped}"
    return types


@pytest.mark.parametrize("service", SERVICES)
def test_prometheus_own_linter_accepts_all_metrics(promtool: str, fleet: Fleet, service: str):
    text = get(f"{address(fleet, service)}/metrics")
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    said = (checked.stdout + checked.stderr).splitlines()
    # vLLM's names have a colon, and are read under just these names.
    theirs = re.compile(r"vllm:\w+ metric names should not contain ':'")
    assert [line for line in said if line and not theirs.fullmatch(line)] == []


def test_no_label_holds_what_a_client_wrote(fleet: Fleet):
    for service in SERVICES:
        assert "client-text" not in get(f"{address(fleet, service)}/metrics")


def test_the_document_names_every_metric_and_no_other(fleet: Fleet):
    text = (MONITORING / "METRICS.md").read_text()
    rows = re.compile(r"^\| `([^`]+)` \| (\w+) \|", re.M)
    before, rare = text.split("## Only where", 1)
    rare, after = rare.split("\n## ", 1)
    always, sometimes = dict(rows.findall(before + after)), dict(rows.findall(rare))
    found = shown(fleet)
    assert {name: kind for name, kind in found.items() if name not in sometimes} == always
    files = [file for room in ("shared", "controller", "model-worker", "api-gateway") for file in ROOT.glob(f"{room}/src/**/*.rs")]
    sources = "".join(file.read_text() for file in files)
    assert [name for name in sometimes if f'"{name}"' not in sources] == []
    assert {name: kind for name, kind in found.items() if name in sometimes}.items() <= sometimes.items()


def test_a_client_that_goes_away_is_counted(fleet: Fleet):
    body = json.dumps({"model": CHAT, "prompt": "Once", "max_tokens": 900, "stream": True, "ignore_eos": True}).encode()
    before = aborted(fleet)
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(fleet.gateway).netloc)
    connection.request("POST", "/v1/completions", body, {"authorization": f"Bearer {API_KEY}"})
    assert connection.getresponse().read(10)
    connection.close()
    eventually(lambda: aborted(fleet) > before, "the worker counts it")
    counted = r'gen_ai_server_request_duration_seconds_count\{.*error_type="cancelled".*\} [1-9]'
    eventually(lambda: re.search(counted, get(f"{fleet.gateway}/metrics")) is not None, "the gateway counts it")


def aborted(fleet: Fleet) -> float:
    text = get(f"{address(fleet, 'worker')}/metrics")
    return sum(float(n) for n in re.findall(r'vllm:request_success_total\{.*finished_reason="abort".*\} (\S+)', text))


def test_the_files_for_prometheus_are_what_it_takes(promtool: str):
    for check in (["rules", "alerts.yaml"], ["config", "--syntax-only", "prometheus.yaml"]):
        done = subprocess.run([promtool, "check", *check], cwd=MONITORING, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def named(query: str) -> set[str]:
    """The metrics that a query asks for."""
    query = re.sub(r'"[^"]*"', "", query)
    query = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", query)
    words = re.findall(r"(?<![\w:.])[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])", query)
    return set(words) - {"and", "or", "unless", "bool", "offset", "by", "without"}


def test_the_alerts_and_the_dashboard_ask_for_metrics_that_there_are():
    assert named('a{x="b"} / on (y) sum by (z) (rate(c_bucket[5m])) > bool 0.02 and vllm:d') == {"a", "c_bucket", "vllm:d"}
    known = set(re.findall(r"^\| `([^`]+)` \|", (MONITORING / "METRICS.md").read_text(), re.M)) | {"up"}
    lines = (MONITORING / "alerts.yaml").read_text()
    alerts = re.findall(r"^ +expr: (?:>-\n)?(.*?)^ +(?:for|labels):", lines, re.M | re.S)
    assert len(alerts) == lines.count("- alert:")
    for query in [*alerts, *queries()]:
        assert named(query), query
        parts = {name: re.sub(r"_(bucket|sum|count)$", "", name) for name in named(query)}
        unknown = [name for name, base in parts.items() if not {name, base} & known]
        assert not unknown, f"{unknown} in {query}"


def queries() -> list[str]:
    panels = json.loads((MONITORING / "grafana.json").read_text())["panels"]
    found = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    assert len(found) > 20
    return [query.replace("$model", ".*").replace("$__rate_interval", "30s") for query in found]


def test_a_real_prometheus_scrapes_all_and_every_query_of_the_dashboard_finds_data(
    promtool: str, fleet: Fleet, tmp_path: Path
):
    config = (MONITORING / "prometheus.yaml").read_text().replace("15s", "1s")
    for port, service in [("8000", "gateway"), ("21001", "controller"), ("21002", "worker")]:
        config = config.replace(f"127.0.0.1:{port}", address(fleet, service).removeprefix("http://"))
    (tmp_path / "prometheus.yaml").write_text(config)
    shutil.copy(MONITORING / "alerts.yaml", tmp_path)
    url = f"127.0.0.1:{free_port()}"
    flags = [f"--config.file={tmp_path}/prometheus.yaml", f"--storage.tsdb.path={tmp_path}/data"]
    with Process("prometheus", ["prometheus", *flags, f"--web.listen-address={url}"], tmp_path) as prometheus:

        def ask(query: str) -> list[dict]:
            try:
                answer = json.loads(get(f"http://{url}/api/v1/query?" + urllib.parse.urlencode({"query": query})))
            except OSError:
                assert prometheus.process.poll() is None, prometheus.text()
                return []
            assert answer["status"] == "success", query
            return answer["data"]["result"]

        eventually(lambda: len(ask('up{job=~"muster-.*"} == 1')) == 3, "all three are scraped", 60)
        left = queries()

        def has_number(query: str) -> bool:
            # Nothing divided by nothing is a value, too, and shows as an empty panel.
            return any(math.isfinite(float(result["value"][1])) for result in ask(query))

        def all_found() -> bool:
            traffic(fleet)
            left[:] = [query for query in left if not has_number(query)]
            return not left

        deadline = time.monotonic() + 90
        while not all_found():
            assert time.monotonic() < deadline, f"queries without data: {left}"
        assert {result["metric"]["__name__"] for result in ask('{__name__=~"muster_.*"}')}

"""A fleet of separate processes with everything that can be seen of it, and a collector for its traces."""

import gzip
import os
import re
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import rotel
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from muster import REQUEST_S, SHUTDOWN_S, STARTUP_S, eventually

API_KEY, FLEET_TOKEN, ADMIN_KEY, OPENAI_KEY = "sk-SECRETAPI", "SECRETFLEET", "SECRETADMIN", "sk-SECRETOPENAI"


class Process:
    """A child whose output is kept, and which is gone at the end of its block."""

    def __init__(self, name: str, command: list[str], folder: Path, **environment: str):
        self.name, self.command = name, [str(word) for word in command]
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        ours = ("MUSTER_", "FASTCHAT_", "OPENAI_", "RUST_LOG", "OTEL_", "ROTEL_")
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)} | environment

    def __enter__(self) -> "Process":
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=self.environment
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(SHUTDOWN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def text(self) -> str:
        return self.out.read_text(errors="replace") + self.err.read_text(errors="replace")

    def said(self, pattern: str) -> str:
        """Waits for a line, and gives its first group."""

        def found() -> bool:
            assert self.process.poll() is None, f"{self.name} has ended:\n{self.text()[-4000:]}"
            return re.search(pattern, self.text()) is not None

        eventually(found, f"{self.name} says {pattern}", STARTUP_S)
        return re.search(pattern, self.text())[1]


class Fleet:
    """Controller, workers and gateway, each a process, with every key there is."""

    def __init__(self, binary: Path, folder: Path, *, common: list[str] = [], gateway: list[str] = []):
        self.binary, self.folder, self.common, self.gateway_flags = binary, folder, common, gateway
        self.processes: list[Process] = []
        self.workers: dict[str, tuple[Process, str]] = {}

    def start(self, name: str, *flags: str) -> Process:
        process = Process(name, [self.binary, *flags, *self.common], self.folder)
        self.processes.append(process.__enter__())
        return process

    def __enter__(self) -> "Fleet":
        flags = ["--port", "0", "--fleet-token", FLEET_TOKEN]
        try:
            controller = self.start("controller", "controller", *flags, "--admin-key", ADMIN_KEY, "--heartbeat", "1s")
            self.controller = controller.said(r"controller listening on (http://\S+)")
            flags += ["--controller-address", self.controller]
            keys = ["--api-key", API_KEY, "--openai-key", OPENAI_KEY, "--threads", "1", "--sync-interval", "100ms"]
            gateway = self.start("gateway", "gateway", *flags, *keys, *self.gateway_flags)
            self.gateway = gateway.said(r"gateway listening on (http://\S+)")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            process.__exit__()

    def add(self, name: str, *flags: str) -> str:
        """Another worker; gives its address when the fleet serves its models."""
        known = ["--port", "0", "--fleet-token", FLEET_TOKEN, "--controller-address", self.controller]
        worker = self.start(name, "worker", *known, "--worker-id", name, *flags)
        address = worker.said(r"worker listening on (http://\S+)")
        self.workers[name] = (worker, address)
        served = lambda: f'"{name}"' in get(f"{self.controller}/fleet", FLEET_TOKEN)
        eventually(served, f"{name} is registered", STARTUP_S)
        return address

    def wait_for(self, model: str) -> None:
        served = lambda: f'"{model}"' in get(f"{self.gateway}/v1/models", API_KEY)
        eventually(served, f"{model} is served", STARTUP_S)


def get(url: str, key: str | None = None) -> str:
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"} if key else {})
    with urllib.request.urlopen(request, timeout=REQUEST_S) as answer:
        return answer.read().decode()


def post(url: str, body: bytes, key: str | None = None, **headers: str) -> tuple[int, str]:
    """Status and body of an answer, whatever the status; what came of a body that breaks off."""
    headers = {"content-type": "application/json"} | headers
    if key:
        headers["authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_S) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def free_port() -> int:
    """For programs of others, which do not tell the port that the system gave them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Collector:
    """Rotel, a collector that speaks OTLP, and behind it whoever looks at the spans that it passes on."""

    def __init__(self, folder: Path):
        self.folder, self.spans, self.raw = folder, [], []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.take(gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body)
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> "Collector":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        port, other = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        program = Path(rotel.__file__).parent / "rotel-agent"
        flags = ["--otlp-http-endpoint", f"127.0.0.1:{port}", "--otlp-grpc-endpoint", f"127.0.0.1:{other}"]
        flags += ["--exporter", "otlp", "--otlp-exporter-protocol", "http", "--otlp-exporter-compression", "none"]
        flags += ["--otlp-exporter-endpoint", f"http://127.0.0.1:{self.server.server_address[1]}"]
        self.rotel = Process("rotel", [program, "start", *flags], self.folder).__enter__()

        def listens() -> bool:
            assert self.rotel.process.poll() is None, self.rotel.text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        eventually(listens, "rotel listens", STARTUP_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.rotel.__exit__()
        self.server.shutdown()
        self.server.server_close()

    def take(self, body: bytes) -> None:
        self.raw.append(body)
        for of_service in ExportTraceServiceRequest.FromString(body).resource_spans:
            said = {pair.key: pair.value.string_value for pair in of_service.resource.attributes}
            for scope in of_service.scope_spans:
                self.spans += [(said["service.name"], span) for span in scope.spans]

    def trace(self, trace_id: str) -> list[tuple[str, Span]]:
        return [(service, span) for service, span in list(self.spans) if span.trace_id.hex() == trace_id]

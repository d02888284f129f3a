"""Processes of the real binary, on ports that the system chooses."""

import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

CHAT, EMBEDDING = "muster-demo-chat", "muster-demo-embedding"
# Far beyond what a healthy run needs: a passed deadline means that something hangs.
STARTUP_S = 60
REQUEST_S = 30
SHUTDOWN_S = 20


class Process:
    """A service, from `with` to the end of its block."""

    def __init__(self, binary: Path, log: Path, *arguments: str):
        self.command = [str(binary), *arguments]
        self.log = log
        self.url = ""
        self._address_known = threading.Event()

    def __enter__(self) -> "Process":
        ours = ("MUSTER_", "FASTCHAT_", "OPENAI_", "RUST_LOG")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._address_known.wait(STARTUP_S) or not self.url:
            self.__exit__(None, None, None)
            raise RuntimeError(f"{' '.join(self.command)} told no address; its log:\n{self.log.read_text()[-4000:]}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(SHUTDOWN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(SHUTDOWN_S)

    def kill(self) -> None:
        """As `kill -9` does: it says nothing to anybody."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def _read(self) -> None:
        """Finds the address, and keeps reading: a full pipe would stop the process."""
        for line in self.process.stdout:
            address = re.search(r"http://127\.0\.0\.1:\d+", line)
            if address and not self.url:
                self.url = address.group()
                self._address_known.set()
        self._address_known.set()

    @property
    def port(self) -> str:
        return self.url.rsplit(":", 1)[1]

    def get(self, path: str, key: str | None = None) -> dict:
        return call(self.url + path, None, key)

    def post(self, path: str, body: dict, key: str | None = None) -> dict:
        return call(self.url + path, body, key)

    def topology(self, key: str | None = None) -> dict:
        return self.get("/topology", key)

    def workers(self, key: str | None = None) -> dict[str, dict]:
        """Of a controller, by name."""
        return {node["id"]: node for node in self.topology(key)["nodes"] if node["kind"] == "worker"}

    def dispatch(self, model: str) -> str:
        """Asks a controller for a worker, and holds the ticket: the worker's name."""
        return self.post("/dispatch", {"gateway": str(uuid.uuid4()), "model": model})["worker"]


def call(url: str, body: dict | None, key: str | None) -> dict:
    """The answer as JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    if key:
        request.add_header("authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_S) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{url} answered {error.code}: {error.read().decode()}") from error


def eventually(condition: Callable[[], object], what: str, within_s: float = 20) -> None:
    """Waits until the condition holds; fails when it does not in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"after {within_s} s still not so: {what}"
        time.sleep(0.05)

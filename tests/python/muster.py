"""`muster up` as a child process, and what the tests read off it."""

import os
import re
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from openai import AsyncOpenAI, OpenAI

CHAT, EMBEDDING = "muster-demo-chat", "muster-demo-embedding"
# Far beyond what a healthy run needs: a passed deadline means that something hangs.
STARTUP_S = 60
REQUEST_S = 60
SHUTDOWN_S = 20


class Muster:
    """One fleet in one process, from `with` to the end of its block."""

    def __init__(self, binary: Path, log: Path, *flags: str):
        self.command = [str(binary), "up", "--host", "127.0.0.1", "--port", "0", *flags]
        self.log = log
        self.url = ""
        # HOST:PORT of the Open Inference Protocol over gRPC, where the flags ask for it.
        self.grpc_address = ""
        self._wants_grpc = "--grpc-port" in flags
        self._address_known = threading.Event()

    def __enter__(self) -> "Muster":
        # What the developer's shell says about muster, OpenAI or traces is not meant for this fleet.
        ours = ("MUSTER_", "FASTCHAT_", "OPENAI_", "RUST_LOG", "OTEL_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        self._reader = threading.Thread(target=self._read_output, daemon=True)
        self._reader.start()
        if not self._address_known.wait(STARTUP_S) or not self.url:
            self.__exit__(None, None, None)
            raise RuntimeError(f"{' '.join(self.command)} told no address; its log:\n{self.tail()}")
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

    def _read_output(self) -> None:
        """Finds the gateway's addresses, and keeps reading: a full pipe would stop the process."""
        for line in self.process.stdout:
            address = re.search(r"http://(127\.0\.0\.1:\d+)", line)
            if address and line.startswith("gateway speaks gRPC"):
                self.grpc_address = address[1]
            elif address and not self.url:
                self.url = address.group()
            if self.url and (self.grpc_address or not self._wants_grpc):
                self._address_known.set()
        self._address_known.set()  # the process has ended; there is nothing to wait for

    def client(self, api_key: str = "unused", **options) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=REQUEST_S, **options)

    def async_client(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=REQUEST_S)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of one metric that carry these labels; 0 when there are none yet."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=REQUEST_S) as response:
            lines = response.read().decode().splitlines()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        samples = [line for line in lines if re.match(rf"{name}[{{ ]", line)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in samples if all(label in line for label in wanted))

    def tail(self, lines: int = 100) -> str:
        """The end of what the process has logged."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def eventually(condition: Callable[[], bool], what: str, within_s: float = 10) -> None:
    """Waits until the condition holds; fails when it does not in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"after {within_s} s still not so: {what}"
        time.sleep(0.02)


def ask(client: OpenAI, question: str, **options) -> str:
    """The likeliest answer to one question."""
    options = {"temperature": 0} | options
    completion = client.chat.completions.create(model=CHAT, messages=user(question), **options)
    return completion.choices[0].message.content


def user(question: str) -> list[dict]:
    return [{"role": "user", "content": question}]

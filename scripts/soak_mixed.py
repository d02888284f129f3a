#!/usr/bin/env python3
"""Sends a million good and bad requests to a fleet of three processes, and watches the memory of each.

    scripts/soak_mixed.py target/release/muster                      # needs nothing but Python, on Linux
    scripts/soak_mixed.py target/debug/muster --requests 20000       # a short look

Six in ten requests are good: completions, embeddings, lists, streams that are left. The others are what hostile clients
send: bodies that are no JSON, or deep, or too large, fields out of range, heads that are none, connections that break off.
Prints the resident memory of gateway, controller and worker at a tenth, a half and all of the requests. Fails when the
second half leaves one of them larger by more than a bound, when a good request fails, when a bad one is answered
otherwise than by a 4xx, or when something still runs at the end.
"""

import argparse
import http.client
import json
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

CHAT, EMBEDDING = "muster-demo-chat", "muster-demo-embedding"
WORDS = "river castle lamp orange violin engine meadow window silver button".split()
COMPLETIONS = "/v1/completions"
# The memory of a process at rest varies by some MiB with what its threads have left to their allocators.
BOUND_MIB = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("muster", type=Path, help="the binary")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--bound", type=float, default=BOUND_MIB, help="growth allowed in the second half, in MiB")
    args = parser.parse_args()
    with Fleet(args.muster) as fleet:
        readings = Soak(fleet, args.requests, args.concurrency).run()
    half, end = readings[-2], readings[-1]
    grown = {name: end[name] - half[name] for name in end}
    print("grown in the second half: " + ", ".join(f"{name} {mib:+.1f} MiB" for name, mib in grown.items()))
    if too_much := [name for name, mib in grown.items() if mib > args.bound]:
        sys.exit(f"memory is not flat: {', '.join(too_much)} grew by more than {args.bound:.0f} MiB")


class Fleet:
    """A controller, a worker with the models in the binary, and a gateway, each a process."""

    def __init__(self, binary: Path):
        self.binary = binary
        self.processes: dict[str, subprocess.Popen] = {}
        self.hosts: dict[str, str] = {}

    def __enter__(self) -> "Fleet":
        self.start("controller")
        controller = ["--controller-address", f"http://{self.hosts['controller']}"]
        self.start("worker", *controller)
        # Half-sent requests are told so soon, or they would be most of the time.
        self.start("gateway", *controller, "--head-timeout", "1s", "--body-timeout", "1s")
        deadline = time.monotonic() + 60
        while not self.serves():
            if time.monotonic() > deadline:
                sys.exit("the fleet never served its models")
            time.sleep(0.1)
        return self

    def start(self, service: str, *flags: str) -> None:
        command = [self.binary, service, "--port", "0", *flags]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.processes[service] = process
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                self.hosts[service] = urlsplit(found.group()).netloc
                # A full pipe would stop the process.
                threading.Thread(target=process.stdout.read, daemon=True).start()
                return
        sys.exit(f"the {service} told no address")

    def serves(self) -> bool:
        connection = http.client.HTTPConnection(self.hosts["gateway"], timeout=10)
        connection.request("GET", "/v1/models")
        names = {model["id"] for model in json.load(connection.getresponse()).get("data", [])}
        connection.close()
        return {CHAT, EMBEDDING} <= names

    def __exit__(self, *_: object) -> None:
        for service in ("gateway", "worker", "controller"):
            if process := self.processes.get(service):
                process.terminate()
                process.wait(60)

    def resident(self) -> dict[str, float]:
        """In MiB."""
        status = {name: Path(f"/proc/{process.pid}/status").read_text() for name, process in self.processes.items()}
        return {name: int(re.search(r"VmRSS:\s+(\d+) kB", text).group(1)) / 1024 for name, text in status.items()}

    def metric(self, service: str, name: str) -> float:
        connection = http.client.HTTPConnection(self.hosts[service], timeout=60)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}[{{ ]", line))


class Soak:
    """Clients that take the next request until there is none."""

    def __init__(self, fleet: Fleet, requests: int, concurrency: int):
        self.fleet = fleet
        self.host = fleet.hosts["gateway"]
        self.requests = requests
        self.concurrency = concurrency
        self.looks = {requests // 10, requests // 2, requests}
        self.lock = threading.Lock()
        self.begun = self.done = self.again = 0
        self.statuses: dict[str, int] = {}
        self.readings: list[dict[str, float]] = []
        self.failures: list[str] = []

    def run(self) -> list[dict[str, float]]:
        started = time.monotonic()
        clients = [threading.Thread(target=self.client) for _ in range(self.concurrency)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        if self.failures:
            sys.exit(f"{len(self.failures)} requests failed; the first: {self.failures[0]}")
        deadline = time.monotonic() + 60
        while self.left():
            if time.monotonic() > deadline:
                sys.exit("a sequence or a ticket is left")
            time.sleep(0.05)
        told = ", ".join(f"{count} {status}" for status, count in sorted(self.statuses.items()))
        print(f"{self.done} requests in {time.monotonic() - started:.0f} s ({told}; {self.again} asked again), nothing left running")
        return self.readings

    def left(self) -> float:
        running = self.fleet.metric("worker", "muster_worker_sequences_running")
        return running + self.fleet.metric("controller", "muster_controller_tickets")

    def client(self) -> None:
        connection = http.client.HTTPConnection(self.host, timeout=120)
        while not self.failures and (number := self.next()) is not None:
            try:
                status = self.one(connection, number)
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.failures.append(f"request {number}: {error!r}")
                return
            self.note(status)
        connection.close()

    def next(self) -> int | None:
        with self.lock:
            if self.begun == self.requests:
                return None
            self.begun += 1
            return self.begun

    def note(self, status: str) -> None:
        with self.lock:
            self.done += 1
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if self.done in self.looks:
                self.readings.append(self.fleet.resident())
                told = ", ".join(f"{name} {mib:.1f}" for name, mib in self.readings[-1].items())
                print(f"{self.done:8d} requests: {told} MiB", flush=True)

    def one(self, connection: http.client.HTTPConnection, number: int) -> str:
        """The same in every run. Says what came of it."""
        random = Random(number)
        prompt = " ".join(random.choices(WORDS, k=random.randrange(1, 30)))
        ask = {"model": CHAT, "prompt": prompt, "max_tokens": random.randrange(1, 4), "temperature": 0}
        match random.randrange(100):
            case kind if kind < 30:
                return self.ask(connection, COMPLETIONS, json.dumps(ask), 200)
            case kind if kind < 45:
                return self.ask(connection, "/v1/embeddings", json.dumps({"model": EMBEDDING, "input": prompt}), 200)
            case kind if kind < 57:
                return self.ask(connection, "/v1/models", None, 200)
            case kind if kind < 60:
                return self.leave(ask | {"stream": True, "max_tokens": 200, "ignore_eos": True})
            case kind if kind < 90:
                path, body = bad_body(random, ask)
                return self.ask(connection, path, body, 400)
            case kind if kind < 99:
                return self.raw(bad_bytes(random, ask))
            case _:
                return self.raw(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{", gone=True)

    def ask(self, connection: http.client.HTTPConnection, path: str, body: str | bytes | None, expected: int) -> str:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        method = "GET" if body is None else "POST"
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
        except ConnectionError:
            # A connection is closed after a refusal whose body was not read; clients ask again over a new one.
            with self.lock:
                self.again += 1
            connection.close()
            connection.request(method, path, body, headers)
            response = connection.getresponse()
        text = response.read()
        right = response.status == 200 if expected == 200 else 400 <= response.status < 500
        assert right and (expected == 200 or b'"error"' in text), (path, response.status, text[:500])
        return str(response.status)

    def leave(self, body: dict) -> str:
        """Reads the first piece of a stream, and goes."""
        connection = http.client.HTTPConnection(self.host, timeout=120)
        connection.request("POST", COMPLETIONS, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200 and response.read(1), response.status
        connection.close()
        return "left"

    def raw(self, sent: bytes, gone: bool = False) -> str:
        """Sends bytes that are no request, or goes before the request has ended."""
        host, port = self.host.split(":")
        with socket.create_connection((host, int(port)), timeout=120) as stream:
            try:
                stream.sendall(sent)
                answer = b"" if gone else stream.recv(4096)
            except ConnectionError:
                return "closed"  # what was refused before it was all sent
        if gone:
            return "gone"
        if sent.startswith(b"PRI"):
            return "frames"
        assert not answer or answer.startswith(b"HTTP/1.1 4"), answer[:500]
        return answer[9:12].decode() or "closed"


def bad_body(random: Random, ask: dict) -> tuple[str, str | bytes]:
    """A path and a body that it refuses."""
    good = json.dumps(ask)
    return random.choice(
        [
            (COMPLETIONS, good[: random.randrange(len(good))]),
            (COMPLETIONS, "[" * random.randrange(1, 5000)),
            (COMPLETIONS, json.dumps(ask | {"n": random.choice([-1, 0, 1.5, 10**9, 10**20])})),
            (COMPLETIONS, json.dumps(ask | {"stop": ["x"] * 20_000})),
            (COMPLETIONS, json.dumps(ask | {"prompt": [1] * 3000})),
            (COMPLETIONS, json.dumps(ask | {"model": f"none-{random.randrange(10**9)}"})),
            (COMPLETIONS, good.replace('"model"', '"\\ud800"')),
            (COMPLETIONS, random.randbytes(random.randrange(1, 200))),
            (COMPLETIONS, b" " * (9 << 20) if random.randrange(50) == 0 else b" "),
            ("/v1/chat/completions", json.dumps({"model": CHAT, "messages": []})),
            ("/v1/embeddings", json.dumps({"model": EMBEDDING, "input": [""]})),
            (f"/{random.randrange(10**9)}", "{}"),
        ]
    )


def bad_bytes(random: Random, ask: dict) -> bytes:
    """What is no request at all."""
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\n"
    return random.choice(
        [
            b"\xff" + random.randbytes(random.randrange(1, 200)),
            (head + "content-length: 1\r\ncontent-length: 2\r\n\r\n").encode(),
            (head + "".join(f"x-{number}: 1\r\n" for number in range(200)) + "\r\n").encode(),
            (head + "transfer-encoding: chunked\r\n\r\nxyz\r\n").encode(),
            (head + f"content-length: {1 << 30}\r\n\r\n").encode(),
            (head + f"x: {'a' * 70_000}\r\n\r\n").encode(),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
            b"GET /v1/models\r\n\r\n",
        ]
    )


if __name__ == "__main__":
    main()

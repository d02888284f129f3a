#!/usr/bin/env python3
"""Sends ten thousand short requests to `muster up` with the demo chat model, and watches its memory.

    scripts/soak.py target/release/muster        # needs nothing but Python, on Linux

Prompts are of mixed lengths and begin alike in groups; every eighth client leaves after the first piece of its stream.
Prints resident memory at every thousand requests. Fails when the last reading exceeds that at two thousand, when
caches and pools have grown to their sizes, by more than a bound, when a request fails, or when something still runs at
the end.
"""

import argparse
import http.client
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

WORDS = "river castle lamp orange violin engine meadow window silver button".split()
# The memory of a fleet at rest varies by some MiB with what its threads have left to their allocators.
BOUND_MIB = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("muster", type=Path, help="the binary")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--bound", type=float, default=BOUND_MIB, help="growth allowed after 2000 requests, in MiB")
    args = parser.parse_args()
    with Fleet(args.muster) as fleet:
        readings = Soak(fleet, args.requests, args.concurrency).run()
    growth = readings[-1] - readings[min(1, len(readings) - 1)]
    print(f"grown by {growth:+.1f} MiB after 2000 requests; the bound is {args.bound:.0f} MiB")
    if growth > args.bound:
        sys.exit("memory is not flat")


class Fleet:
    """`muster up` on a free port, with the models in the binary."""

    def __init__(self, binary: Path):
        command = [binary, "up", "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def __enter__(self) -> "Fleet":
        for line in self.process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                self.host = urlsplit(found.group()).netloc
                # A full pipe would stop the process.
                threading.Thread(target=self.process.stdout.read, daemon=True).start()
                return self
        sys.exit("muster told no address")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)

    def resident(self) -> float:
        """In MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) / 1024

    def metric(self, name: str) -> float:
        connection = http.client.HTTPConnection(self.host, timeout=60)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}[{{ ]", line))


class Soak:
    """Clients that take the next request until there is none."""

    def __init__(self, fleet: Fleet, requests: int, concurrency: int):
        self.fleet = fleet
        self.requests = requests
        self.concurrency = concurrency
        self.lock = threading.Lock()
        self.begun = 0
        self.done = 0
        self.readings: list[float] = []
        self.failures: list[str] = []

    def run(self) -> list[float]:
        started = time.monotonic()
        clients = [threading.Thread(target=self.client) for _ in range(self.concurrency)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        if self.failures:
            sys.exit(f"{len(self.failures)} requests failed; the first: {self.failures[0]}")
        deadline = time.monotonic() + 30
        while self.fleet.metric("muster_worker_sequences_running") or self.fleet.metric("muster_controller_tickets"):
            if time.monotonic() > deadline:
                sys.exit("a sequence or a ticket is left")
            time.sleep(0.05)
        print(f"{self.done} requests in {time.monotonic() - started:.0f} s, nothing left running")
        return self.readings

    def client(self) -> None:
        connection = http.client.HTTPConnection(self.fleet.host, timeout=60)
        while (number := self.next()) is not None:
            try:
                if number % 8 == 0:
                    self.leave(number)
                else:
                    self.ask(connection, number)
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.failures.append(f"request {number}: {error!r}")
                return
            self.note()
        connection.close()

    def next(self) -> int | None:
        with self.lock:
            if self.begun == self.requests:
                return None
            self.begun += 1
            return self.begun

    def note(self) -> None:
        with self.lock:
            self.done += 1
            if self.done % 1000 == 0 or self.done == self.requests:
                self.readings.append(self.fleet.resident())
                print(f"{self.done:6d} requests: {self.readings[-1]:7.1f} MiB", flush=True)

    def ask(self, connection: http.client.HTTPConnection, number: int) -> None:
        response = self.post(connection, body(number))
        text = response.read()
        assert response.status == 200, text[:500]

    def leave(self, number: int) -> None:
        """Reads the first piece of a stream, and goes."""
        connection = http.client.HTTPConnection(self.fleet.host, timeout=60)
        response = self.post(connection, body(number) | {"stream": True, "max_tokens": 500, "ignore_eos": True})
        assert response.status == 200 and response.read(1), response.status
        connection.close()

    def post(self, connection: http.client.HTTPConnection, body: dict) -> http.client.HTTPResponse:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        return connection.getresponse()


def body(number: int) -> dict:
    """The same in every run."""
    random = Random(number)
    shared = Random(random.randrange(20))
    begin = " ".join(shared.choices(WORDS, k=shared.randrange(60)))
    prompt = f"{begin} {' '.join(random.choices(WORDS, k=random.randrange(1, 40)))}"
    sampling = {"temperature": random.choice([0, 1]), "seed": number}
    return {"model": "muster-demo-chat", "prompt": prompt, "max_tokens": random.randrange(1, 9)} | sampling


if __name__ == "__main__":
    main()

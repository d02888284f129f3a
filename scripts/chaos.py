#!/usr/bin/env python3
"""Kills workers under load, or takes the controller away, and checks every answer.

    scripts/chaos.py target/release/muster                 # a worker of three killed every second, for a minute
    scripts/chaos.py target/release/muster --outage 30     # no controller for half a minute
    scripts/chaos.py target/release/muster --outage 30 --hang    # one that hangs as long, and goes on

Needs nothing but Python, on Linux. Clients ask the demo chat model all kinds of questions at once: chats and
completions, streamed and whole, greedy and drawn by a seed, one answer and two. Each answer is compared with the one
that the same question got before anything was killed: texts, reasons, tokens used, one end. Prints counts, and fails
when a request failed, when an answer was wrong, or when the controller counts others than those that run.
"""

import argparse
import http.client
import itertools
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

CHAT = "muster-demo-chat"
ENDLESS = "endless"
# Answers to these are long, so that many of them run when a worker dies.
STORIES = [f"Tell me a story about a {animal}." for animal in ["fox", "bear", "robot"]]
HEARTBEAT_S = 1.0
# Nothing takes that long on a machine that works.
PATIENCE_S = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("muster", type=Path, help="the binary")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--kills", type=int, default=60, help="workers killed, one after another")
    parser.add_argument("--every", type=float, default=1, help="seconds between two kills")
    parser.add_argument("--outage", type=float, help="seconds without a controller, in place of kills")
    parser.add_argument("--hang", action="store_true", help="the controller hangs in the outage, and is not killed")
    parser.add_argument("--transport", choices=["http", "grpc"], default="http")
    args = parser.parse_args()
    with Fleet(args.muster, args.workers, args.transport) as fleet:
        load = Load(fleet, args.clients)
        if args.outage is None:
            wrong = kill_workers(fleet, load, args.kills, args.every)
        else:
            wrong = take_controller_away(fleet, load, args.outage, args.hang)
    for line in wrong[:5]:
        print(line)
    if wrong:
        sys.exit(f"{len(wrong)} things went wrong")


def kill_workers(fleet: "Fleet", load: "Load", kills: int, every: float) -> list[str]:
    load.start()
    for kill in range(kills):
        load.wait_for(1)
        time.sleep(every)
        worker = fleet.workers[kill % len(fleet.workers)]
        worker.kill()
        worker.start()
    load.stop()
    resumed = fleet.metric("muster_gateway_resumptions_total")
    retried = fleet.metric("muster_gateway_retries_total")
    print(f"{kills} kills of a worker of {len(fleet.workers)}: {load.counts()}")
    print(f"{resumed:.0f} answers went on at another worker, {retried:.0f} attempts were repeated")
    return load.wrong + fleet.until("tickets are 0", lambda: fleet.tickets() == 0)


def take_controller_away(fleet: "Fleet", load: "Load", outage: float, hang: bool) -> list[str]:
    streams = [Held(fleet) for _ in range(8)]
    load.start()
    load.wait_for(load.clients)
    if hang:
        fleet.controller.process.send_signal(signal.SIGSTOP)
    else:
        fleet.controller.kill()
    before, began = load.answers, time.monotonic()
    streams += [Held(fleet) for _ in range(8)]
    for stream in streams[:4]:
        stream.leave()
    del streams[:4]
    time.sleep(max(0, began + outage - time.monotonic()))
    during = load.answers - before
    if hang:
        fleet.controller.process.send_signal(signal.SIGCONT)
    else:
        fleet.controller.start()
    back = time.monotonic()
    load.wait_for(load.clients)
    load.stop()
    # What runs from here on is known: the streams that are held open.
    ended = time.monotonic()
    wrong = fleet.until(f"tickets are {len(streams)}", lambda: fleet.tickets() == len(streams))
    counted = time.monotonic() - max(back, ended)
    if counted > 2 * HEARTBEAT_S:
        wrong.append(f"the controller counted what runs only after {counted:.1f} s")
    wrong += [f"a held stream broke off: {stream.end}" for stream in streams if stream.end is not None]
    for stream in streams:
        stream.leave()
    wrong += fleet.until("tickets are 0", lambda: fleet.tickets() == 0)
    kind = "a hanging" if hang else "no"
    print(f"{outage:.0f} s with {kind} controller, {during} answers meanwhile: {load.counts()}")
    print(f"it was back for {ended - back:.1f} s when the load ended, and counted what runs {counted:.1f} s later")
    return load.wrong + wrong


class Service:
    """One process that can be killed and started again at the same port."""

    def __init__(self, command: list[str]):
        self.command = command
        self.port = "0"
        self.start()

    def start(self) -> None:
        command = [*self.command, "--port", self.port]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for line in self.process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.host = urlsplit(found.group()).netloc
                self.port = found.group(1)
                # A full pipe would stop the process.
                threading.Thread(target=self.process.stdout.read, daemon=True).start()
                return
        sys.exit(f"{' '.join(command)} told no address")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection(self.host, timeout=PATIENCE_S)
        connection.request("GET", path)
        body = connection.getresponse().read()
        connection.close()
        return body


class Fleet:
    """A controller, a gateway and workers of the demo chat model and one that says little and never ends."""

    def __init__(self, binary: Path, workers: int, transport: str):
        self.binary, self.count, self.transport = str(binary), workers, transport
        self.services: list[Service] = []

    def __enter__(self) -> "Fleet":
        self.controller = self.service("controller", "--heartbeat", f"{HEARTBEAT_S:.0f}s")
        address = ["--controller-address", f"http://{self.controller.host}"]
        slow = ["--model", f"{ENDLESS}=fake", "--fake-token-time", "50ms", "--fake-answer", "1000000"]
        flags = [*address, "--model", CHAT, *slow, "--slots", "64", "--waiting", "64", "--transport", self.transport]
        flags += ["--grpc-port", "0"] if self.transport == "grpc" else []
        self.workers = [self.service("worker", *flags) for _ in range(self.count)]
        self.gateway = self.service("gateway", *address)
        missing = self.until("workers are known", lambda: len(self.fleet()["workers"]) == self.count)
        missing += self.until("the gateway is ready", lambda: b"ready" in self.gateway.get("/ready"))
        if missing:
            sys.exit(missing[0])
        return self

    def __exit__(self, *_: object) -> None:
        for service in self.services:
            service.kill()

    def service(self, *command: str) -> Service:
        self.services.append(Service([self.binary, *command]))
        return self.services[-1]

    def fleet(self) -> dict:
        return json.loads(self.controller.get("/fleet"))

    def tickets(self) -> int:
        return sum(worker["tickets"] for worker in self.fleet()["workers"])

    def metric(self, name: str) -> float:
        lines = self.gateway.get("/metrics").decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}[{{ ]", line))

    def until(self, what: str, holds: Callable[[], bool]) -> list[str]:
        """Waits; says what never came true."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            if time.monotonic() > deadline:
                return [f"never so: {what}"]
            time.sleep(0.05)
        return []


class Held:
    """A stream that has begun, and goes on until its client leaves."""

    def __init__(self, fleet: Fleet):
        self.end: str | None = None
        self.left = False
        self.connection = http.client.HTTPConnection(fleet.gateway.host, timeout=PATIENCE_S)
        body = chat("Go on.") | {"model": ENDLESS, "stream": True}
        self.response = post(self.connection, "/v1/chat/completions", body)
        assert self.response.status == 200 and self.response.read(1), self.response.status
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def read(self) -> None:
        last = b""
        try:
            while data := self.response.read1(65536):
                last = data
                if self.left:
                    self.response.close()
                    self.connection.close()
                    return
            self.end = last[-500:].decode()
        except (OSError, http.client.HTTPException) as error:
            self.end = repr(error)

    def leave(self) -> None:
        self.left = True
        self.thread.join()


class Load:
    """Clients that ask again and again, and compare."""

    def __init__(self, fleet: Fleet, clients: int):
        self.fleet, self.clients = fleet, clients
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.answers = 0
        self.wrong: list[str] = []
        self.kinds: Counter[str] = Counter()
        self.took_to_stop = 0.0
        self.questions = questions()
        connection = http.client.HTTPConnection(fleet.gateway.host, timeout=PATIENCE_S)
        self.right = [answer(connection, *question) for question in self.questions]

    def start(self) -> None:
        self.began = time.monotonic()
        self.threads = [threading.Thread(target=self.client, args=(number,)) for number in range(self.clients)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        asked = time.monotonic()
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        self.took = time.monotonic() - self.began
        self.took_to_stop = time.monotonic() - asked

    def wait_for(self, more: int) -> None:
        wanted = self.answers + more
        self.fleet.until("answers go on", lambda: self.answers + len(self.wrong) >= wanted)

    def counts(self) -> str:
        failed = sum(line.startswith("failed") for line in self.wrong)
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        wrong = len(self.wrong) - failed
        return f"{self.answers} answers right in {self.took:.0f} s, {failed} failed, {wrong} wrong ({kinds})"

    def client(self, number: int) -> None:
        random = Random(number)
        connection = http.client.HTTPConnection(self.fleet.gateway.host, timeout=PATIENCE_S)
        while not self.stopping.is_set():
            index = random.randrange(len(self.questions))
            path, body = self.questions[index]
            try:
                got = answer(connection, path, body)
                problem = None if got == self.right[index] else f"wrong: {body}\n{got}\ninstead of\n{self.right[index]}"
            except Exception as error:  # whatever it is, it is counted, and the others still say something
                problem = f"failed: {body}: {error!r}"
                connection.close()
            with self.lock:
                if problem:
                    self.wrong.append(problem)
                else:
                    self.answers += 1
                    self.kinds["streamed" if body.get("stream") else "whole"] += 1
        connection.close()


def questions() -> list[tuple[str, dict]]:
    """Of every kind, the same in every run."""
    found = []
    drawn = [{"temperature": 0}, {"temperature": 1.2, "seed": 7, "presence_penalty": 0.5}]
    shapes = [{"n": 1}, {"n": 2}, {"n": 1, "stop": [". ", "never said"]}]
    for number, (story, sampling, shape, stream) in enumerate(
        itertools.product(STORIES, drawn, shapes, [True, True, False])
    ):
        more = sampling | shape | {"max_tokens": 60, "ignore_eos": True}
        if stream:
            more |= {"stream": True, "stream_options": {"include_usage": True}}
        if number % 3 == 2:
            prompt = f"<|im_start|>user\n{story}<|im_end|>\n<|im_start|>assistant\n"
            found.append(("/v1/completions", {"model": CHAT, "prompt": prompt, "echo": number % 2 == 0} | more))
        else:
            found.append(("/v1/chat/completions", chat(story) | more | {"logprobs": number % 2 == 0}))
    return found


def chat(question: str) -> dict:
    return {"model": CHAT, "messages": [{"role": "user", "content": question}]}


def post(connection: http.client.HTTPConnection, path: str, body: dict) -> http.client.HTTPResponse:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection.getresponse()


def answer(connection: http.client.HTTPConnection, path: str, body: dict) -> tuple:
    """Texts, reasons and tokens of an answer, without what may differ from run to run."""
    response = post(connection, path, body)
    text = response.read().decode()
    assert response.status == 200, f"{response.status}: {text[:500]}"
    if not body.get("stream"):
        whole = json.loads(text)
        return compared([whole], whole["usage"])
    *events, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", ""), f"no end: {text[-500:]}"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events if not event.startswith(":")]
    assert len({chunk["id"] for chunk in chunks}) == 1, "chunks of two answers"
    assert [bool(chunk.get("usage")) for chunk in chunks] == [False] * (len(chunks) - 1) + [True], "usage is not once"
    return compared(chunks, chunks[-1]["usage"])


def compared(chunks: list[dict], usage: dict) -> tuple:
    texts: dict[int, str] = {}
    reasons: dict[int, list[str]] = {}
    tokens: dict[int, list[str]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        index, said = choice["index"], choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
        texts[index] = texts.get(index, "") + (said.get("content") or "")
        reasons.setdefault(index, []).extend(filter(None, [choice["finish_reason"]]))
        logprobs = (choice.get("logprobs") or {}).get("content") or []
        tokens.setdefault(index, []).extend(entry["token"] for entry in logprobs)
    counts = [usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
    return texts, reasons, tokens, counts


if __name__ == "__main__":
    main()

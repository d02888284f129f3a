#!/usr/bin/env python3
"""Compares what the controller thinks that workers have to do with what they do, after a hundred thousand requests.

    scripts/load_truth.py target/release/muster                  # needs nothing but Python, on Linux; some minutes
    scripts/load_truth.py target/release/muster --requests 1000  # the same in small

A controller, two gateways, workers of muster's own and one that speaks FastChat's protocol. Clients send requests of all
kinds: chats and completions, whole and streamed, embeddings, prompts that are too long, models that do not exist; some
leave while they send, before the answer, in the middle of it, or when their time is over. In five rounds nothing else
happens; workers are killed and started again; a gateway is; the controller is; all of that. Streams that were opened
before go on through it all. After each round, when all but these have ended, the controller's tickets of every worker
must equal the worker's own count within a heartbeat, and at the very end both must be 0. Prints figures; fails on a
difference.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

from chaos import Service

SAY, FAST, EMBED = "say", "fast", "muster-demo-embedding"
HEARTBEAT_S = 1.0
# Time that a look at all services may take on a busy machine, beside the heartbeat.
SLACK_S = 0.5
# The tickets of a gateway that was killed lapse after this time (`LeaseConfig::gateway_term`).
GATEWAY_TERM_S = 15
# Nothing takes that long on a machine that works.
PATIENCE_S = 60
# A fake model's context lasts for two minutes at this pace, so that streams outlive their round; a prompt takes as long, and
# workers read prompts one by one.
TOKEN_MS = 30
# Longer than that context, which is of 4096 tokens.
TOO_LONG = "river " * 3000
ROUNDS = ["nothing", "workers", "gateway", "controller", "everything"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("muster", type=Path, help="the binary")
    parser.add_argument("--requests", type=int, default=100_000, help="of all rounds together (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=12, help="muster's own (default: %(default)s)")
    parser.add_argument("--held", type=int, default=12, help="streams held open in each round (default: %(default)s)")
    parser.add_argument("--every", type=float, default=2, help="seconds between two kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the requests (default: %(default)s)")
    args = parser.parse_args()
    with Fleet(args.muster, args.workers) as fleet:
        wrong = asyncio.run(Truth(fleet, args).run())
    for line in wrong[:10]:
        print(line)
    if wrong:
        sys.exit(f"{len(wrong)} things went wrong")


class Fleet:
    """The services, each a process."""

    def __init__(self, binary: Path, workers: int):
        self.binary, self.count = str(binary), workers
        self.services: list[Service] = []

    def __enter__(self) -> "Fleet":
        self.controller = self.service("controller", "--heartbeat", f"{HEARTBEAT_S:.0f}s")
        address = ["--controller-address", f"http://{self.controller.host}"]
        fake = ["--model", f"{SAY}=fake", "--fake-token-time", f"{TOKEN_MS}ms", "--fake-answer", "1000000"]
        # An answer that repeats itself would be foretold, and soon be at its end.
        fake += ["--speculation", "false"]
        flags = [*address, *fake, "--model", EMBED, "--slots", "64", "--waiting", "64"]
        self.workers = [self.service("worker", *flags) for _ in range(self.count)]
        fast = ["--transport", "fastchat", "--model", FAST, "--token-time", f"{TOKEN_MS}ms"]
        self.fast = self.service("bench", "fake-worker", *fast, *address)
        self.gateways = [self.service("gateway", *address) for _ in range(2)]
        return self

    def __exit__(self, *_: object) -> None:
        for service in self.services:
            service.kill()

    def service(self, *command: str) -> Service:
        self.services.append(Service([self.binary, *command]))
        return self.services[-1]

    async def counts(self) -> dict[str, tuple[int, int]] | None:
        """For every worker, the controller's tickets and its own count; nothing while one cannot be asked."""
        everybody = [*self.workers, self.fast]
        ask = [call(worker.host, "POST", "/worker_get_status") for worker in everybody]
        try:
            fleet, *own = await asyncio.gather(call(self.controller.host, "GET", "/fleet"), *ask)
        except (OSError, ValueError, EOFError):
            return None
        known = {worker["id"]: worker for worker in fleet["workers"]}
        found = {}
        for worker, status in zip(everybody, own):
            entry = known.get(f"http://{worker.host}")
            if entry is None or entry["state"] == "gone":
                return None
            found[worker.host] = (entry["tickets"], status["queue_length"])
        return found


class Truth:
    """Load, kills and comparisons."""

    def __init__(self, fleet: Fleet, args: argparse.Namespace):
        self.fleet, self.args = fleet, args
        self.random = Random(args.seed)
        self.kinds: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.sent = 0
        self.wrong: list[str] = []
        self.held: list[Held] = []
        self.gateway_killed = 0.0

    async def run(self) -> list[str]:
        if not await self.ready():
            return ["the fleet is not ready"]
        began = time.monotonic()
        for number, what in enumerate(ROUNDS):
            await self.round(what, self.args.requests * (number + 1) // len(ROUNDS))
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        kills = ", ".join(f"{count} of a {name}" for name, count in sorted(self.kills.items()))
        print(f"{self.sent} requests in {time.monotonic() - began:.0f} s: {kinds}")
        print(f"kills: {kills or 'none'}")
        return self.wrong

    async def ready(self) -> bool:
        """Whether every model answers at both gateways in time."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            counts = await self.fleet.counts()
            asked = [await once(gateway.host, model) for gateway in self.fleet.gateways for model in (SAY, FAST, EMBED)]
            if counts and all(asked):
                return True
            await asyncio.sleep(0.1)
        return False

    async def round(self, what: str, until: int) -> None:
        """Load up to so many requests in all, kills meanwhile, and a comparison when the load has ended."""
        for number in range(self.args.held):
            held = Held(self.fleet.gateways[number % 2], FAST if number % 6 == 5 else SAY)
            if await held.begin():
                self.held.append(held)
            else:
                self.wrong.append(f"a stream could not be opened: {held.end}")
        began, before, kinds = time.monotonic(), self.sent, self.kinds.copy()
        clients = [asyncio.create_task(self.client(number, until)) for number in range(self.args.clients)]
        killing = asyncio.create_task(self.kill(what, until))
        await asyncio.gather(*clients)
        await killing
        took = time.monotonic() - began
        for held in [held for held in self.held if held.end is not None]:
            self.held.remove(held)
            if held.gateway.process is held.process:  # the gateway that had it was not killed
                self.wrong.append(f"a held stream broke off, {what}: {held.end}")
        refused = {kind: count for kind, count in (self.kinds - kinds).items() if kind.startswith(("status", "broken"))}
        if refused and what == "nothing":
            self.wrong.append(f"requests failed though nothing was killed: {refused}")
        rate = (self.sent - before) / took
        await self.compare(f"{what} killed, {self.sent - before} requests at {rate:.0f}/s", len(self.held))
        for held in self.held:
            held.leave()
        self.held = []
        await self.compare("all have ended", 0)

    async def compare(self, when: str, running: int) -> None:
        """Looks until both counts are equal and right, and says how long that took."""
        began = time.monotonic()
        lapse = max(0.0, self.gateway_killed + GATEWAY_TERM_S - began)
        counts = None
        while time.monotonic() < began + PATIENCE_S:
            counts = await self.fleet.counts()
            if counts and all(ours == own for ours, own in counts.values()):
                if sum(own for _, own in counts.values()) == running:
                    break
            await asyncio.sleep(0.05)
        else:
            self.wrong.append(f"{when}: never equal with {running} in flight; controller and worker: {counts}")
            return
        took = time.monotonic() - began
        shown = " ".join(f"{ours}={own}" for ours, own in (counts or {}).values())
        print(f"{when}; {running} streams held; equal after {took:.2f} s: {shown}", flush=True)
        if took > lapse + HEARTBEAT_S + SLACK_S:
            self.wrong.append(f"{when}: equal only after {took:.2f} s")

    async def kill(self, what: str, until: int) -> None:
        """Kills and starts again while there is load."""
        parts = {"nothing": [], "everything": ["gateway", "controller", "worker"]}.get(what, [what.removesuffix("s")])
        share = (until - self.sent) // 10
        # Gateway and controller early, so that the round's end finds what is to last.
        for part, after in (("gateway", self.sent + share), ("controller", self.sent + 3 * share)):
            if part in parts:
                await self.sent_so_many(after)
                await self.kill_one(part, self.fleet.gateways[1] if part == "gateway" else self.fleet.controller)
        last = until - 3 * share
        while "worker" in parts and self.sent < last:
            await asyncio.sleep(self.args.every)
            await self.kill_one("worker", self.fleet.workers[self.kills["worker"] % len(self.fleet.workers)])

    async def sent_so_many(self, count: int) -> None:
        while self.sent < count:
            await asyncio.sleep(0.01)

    async def kill_one(self, name: str, service: Service) -> None:
        self.kills[name] += 1
        service.kill()
        if name == "gateway":
            self.gateway_killed = time.monotonic()
        if name == "controller":
            await asyncio.sleep(2 * HEARTBEAT_S)
        await asyncio.to_thread(service.start)

    async def client(self, number: int, until: int) -> None:
        random = Random(f"{self.args.seed} {number} {until}")
        client = Client(self.fleet.gateways)
        while self.sent < until:
            self.sent += 1
            self.kinds[await client.ask(random)] += 1
        client.close()


class Client:
    """Sends one request at a time on a connection that it keeps while it can."""

    def __init__(self, gateways: list[Service]):
        self.gateways = gateways
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, random: Random) -> str:
        """Sends a request of any kind; says what became of it."""
        kind, path, body = question(random)
        request = message("POST", path, body)
        way = random.choices(["stay", "half", "before", "within", "late"], [80, 2, 6, 8, 4])[0]
        try:
            if self.writer is None:
                host, port = random.choice(self.gateways).host.split(":")
                self.reader, self.writer = await asyncio.open_connection(host, int(port))
            if way == "half":
                self.writer.write(request[: random.randrange(1, len(request))])
                await asyncio.sleep(0)
                return self.leave("left while sending")
            self.writer.write(request)
            if way == "before":
                await asyncio.sleep(random.choice([0, 0.005, 0.05]))
                return self.leave("left before the answer")
            if way == "within":
                await asyncio.wait_for(self.reader.read(random.randrange(1, 2000)), PATIENCE_S)
                return self.leave("left within the answer")
            patience = random.uniform(0.001, 0.1) if way == "late" else PATIENCE_S
            status = await asyncio.wait_for(answer(self.reader), patience)
            return kind if status in (200, 400, 404) else f"status {status}"
        except TimeoutError:
            return self.leave("left when its time was over")
        except (OSError, EOFError, ValueError):
            await asyncio.sleep(0.05)  # a gateway that is gone is not stormed
            return self.leave("broken connections")

    def leave(self, why: str) -> str:
        self.close()
        return why

    def close(self) -> None:
        if self.writer:
            self.writer.transport.abort()
        self.reader = self.writer = None


def question(random: Random) -> tuple[str, str, dict]:
    model = FAST if random.random() < 0.1 else SAY
    words = " ".join(random.choices(["river", "castle", "lamp", "violin"], k=random.randrange(1, 20)))
    length = {"max_tokens": random.randrange(1, 4)}
    messages = [{"role": "user", "content": words}]
    drawn = random.random()
    if drawn < 0.35:
        return "whole chats", "/v1/chat/completions", {"model": model, "messages": messages} | length
    if drawn < 0.7:
        return "streamed chats", "/v1/chat/completions", {"model": model, "messages": messages, "stream": True} | length
    if drawn < 0.8:
        return "completions", "/v1/completions", {"model": SAY, "prompt": words, "stream": drawn < 0.75} | length
    if drawn < 0.93:
        return "embeddings", "/v1/embeddings", {"model": EMBED, "input": words}
    if drawn < 0.97:
        messages = [{"role": "user", "content": TOO_LONG}]
        return "too long prompts", "/v1/chat/completions", {"model": SAY, "messages": messages} | length
    return "unknown models", "/v1/chat/completions", {"model": "nobody", "messages": messages}


class Held:
    """A stream that goes on until its client leaves."""

    def __init__(self, gateway: Service, model: str):
        # The process that has it: another one at the same address does not know it.
        self.gateway, self.process, self.model = gateway, gateway.process, model
        self.end: str | None = None

    async def begin(self) -> bool:
        host, port = self.gateway.host.split(":")
        # As the FastChat worker understands it; others take the length from their own flags.
        words = "fake:n=1000,d=500000; go on" if self.model == FAST else "go on"
        body = {"model": self.model, "messages": [{"role": "user", "content": words}], "stream": True}
        body |= {"max_tokens": 100_000} if self.model == FAST else {}
        try:
            self.reader, self.writer = await asyncio.open_connection(host, int(port))
            self.writer.write(message("POST", "/v1/chat/completions", body))
            head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        except (OSError, EOFError, TimeoutError) as error:
            self.end = repr(error)
            return False
        if b" 200 " not in head.split(b"\r\n")[0]:
            self.end = head.decode()
            return False
        self.reading = asyncio.create_task(self.read())
        return True

    async def read(self) -> None:
        last = b""
        try:
            while data := await self.reader.read(1 << 16):
                last = data
                if data.endswith(b"0\r\n\r\n"):
                    break
            self.end = last[-300:].decode(errors="replace") or "nothing more came"
        except OSError as error:
            self.end = repr(error)

    def leave(self) -> None:
        self.reading.cancel()
        self.writer.transport.abort()


def message(method: str, path: str, body: dict | None = None) -> bytes:
    data = json.dumps(body).encode() if body is not None else b""
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n"
    return head.encode() + b"\r\n" + data


async def answer(reader: asyncio.StreamReader) -> int:
    status, _ = await body_of(reader)
    return status


async def body_of(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Reads one answer to its end."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head.split(b" ", 2)[1])
    if b"transfer-encoding: chunked" in head:
        body = b""
        while not body.endswith(b"0\r\n\r\n"):
            more = await reader.read(1 << 16)
            if not more:
                raise EOFError("the answer broke off")
            body = body[-8:] + more
        return status, body
    length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length")), 0)
    return status, await reader.readexactly(length)


async def call(host: str, method: str, path: str) -> dict:
    name, port = host.split(":")
    reader, writer = await asyncio.open_connection(name, int(port))
    try:
        writer.write(message(method, path))
        _, body = await asyncio.wait_for(body_of(reader), PATIENCE_S)
        return json.loads(body)
    finally:
        writer.close()


async def once(host: str, model: str) -> bool:
    """Whether a model answers at a gateway."""
    name, port = host.split(":")
    body = {"model": model, "input": "x"} if model == EMBED else {
        "model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1,
    }
    reader, writer = await asyncio.open_connection(name, int(port))
    try:
        writer.write(message("POST", "/v1/embeddings" if model == EMBED else "/v1/chat/completions", body))
        return await asyncio.wait_for(answer(reader), PATIENCE_S) == 200
    finally:
        writer.close()


if __name__ == "__main__":
    main()

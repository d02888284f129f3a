#!/usr/bin/env python3
"""A duel of gateways before the same two workers that answer at once, driven by `muster bench gateway`.

All contenders run from the beginning to the end. In every round each scenario is measured with one contender after the
other, the order turned by one each round; compare contenders within a round. What counts is the processor time of a
contender's own processes (for muster and FastChat: controller and gateway), with their children.

    direct          no gateway: the first fake worker itself
    nginx           the practical limit of plain proxying; every other figure is also told as a multiple of it
    vllm-router     round robin (PyPI)
    fastchat        FastChat's controller and gateway, before two workers that speak FastChat's protocol
    muster-openai   muster's controller and gateway, before the workers of the others
    muster-http     the same before two workers that speak muster's own protocol

Everything is on the loopback, on free ports. Who is not installed is left out with a word.
"""

import argparse
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import contenders
import harness
from contenders import CONTENDERS, MODEL

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "muster/bench"
# Seconds in which a contender must have answered once; seconds that a measurement may take beyond its own.
FIRST, SLACK = 30, 60
# Requests after which the memory of a soak is read first.
SOAK_FIRST = 100_000


def load(kind, clients, warm, *more):
    return {"kind": kind, "clients": clients, "warm": warm, "more": [str(word) for word in more]}


def paced(clients):
    return load("stream", clients, 1.1, "--prompt", "fake:n=50,d=20000;", "--max-tokens", 50)


SCENARIOS = {
    **{f"chat_c{clients}": load("chat", clients, 0.5) for clients in (1, 16, 64, 256)},
    "chat32k_c16": load("chat", 16, 0.5, "--prompt-bytes", 32768),
    "embeddings_c16": load("embeddings", 16, 0.5),
    # Many short streams: the time to the first token.
    "ttft_c1": load("stream", 1, 0.5, "--prompt", "fake:n=5,d=5000;", "--max-tokens", 5),
    # 50 tokens, 20 ms apart.
    **{f"stream_c{clients}": paced(clients) for clients in (1, 16, 64, 256)},
    # Tokens without a pause: what a gateway forwards when it is all that counts.
    "flood_c16": load("stream", 16, 0.5, "--prompt", "fake:n=200;", "--max-tokens", 200),
}
# Streams that are all open when memory is read.
OPEN = load("stream", 256, 2, "--prompt", "fake:n=100,d=50000;", "--max-tokens", 100)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="?", type=pathlib.Path, default=CACHE,
                        help="the folder that setup-gateway.sh has filled (default: muster/bench in the cache folder)")
    parser.add_argument("--muster", type=pathlib.Path, default="target/release/muster", help="default: %(default)s")
    parser.add_argument("--only", type=names(CONTENDERS), default=list(CONTENDERS), metavar="NAME,...")
    parser.add_argument("--scenarios", type=names(SCENARIOS), default=list(SCENARIOS), metavar="NAME,...",
                        help=f"of {', '.join(SCENARIOS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=2, help="length of each measurement (default: %(default)s)")
    parser.add_argument("--soak", type=int, metavar="N", help=f"also tell the memory after {SOAK_FIRST} and N requests")
    parser.add_argument("--soak-limit", type=float, default=600, metavar="SECONDS",
                        help="time that a contender gets for them (default: %(default)s)")
    parser.add_argument("--json", type=pathlib.Path, metavar="OUT", help="also write everything to this file")
    parser.add_argument("--raise", dest="nice", type=int, metavar="N",
                        help="raise this session above all others, to -N (1 to 20; needs root)")
    arguments = parser.parse_args()
    if arguments.nice is not None:
        harness.raise_session(arguments.nice)
    arguments.work, arguments.muster = arguments.work.resolve(), arguments.muster.resolve()
    if not arguments.muster.exists():
        sys.exit(f"{arguments.muster} is missing; build it with: cargo build --release")
    # So that the programs in the background are ended, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    duel = Duel(arguments)
    with tempfile.TemporaryDirectory(prefix="muster-bench-") as scratch:
        with contenders.Programs(scratch, arguments.muster) as programs:
            duel.run(programs)
    duel.tell()
    if arguments.json:
        arguments.json.write_text(json.dumps(duel.everything(), indent=1) + "\n")


def names(known):
    def parse(text):
        given = text.split(",")
        if unknown := [name for name in given if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return given
    return parse


def note(text):
    print(text, file=sys.stderr, flush=True)


class Duel:
    """Figures as they come: a row for each round, scenario and contender."""

    def __init__(self, arguments):
        self.arguments, self.rows, self.memory, self.soaks, self.versions, self.left_out = arguments, [], {}, {}, {}, {}
        self.running = {}  # name: (address, processes)

    def run(self, programs):
        for name, running, reason in contenders.start(self.arguments.only, programs, self.arguments.work):
            if running and (reason := self.first_answer(running)) is None:
                self.running[name] = running
                self.versions[name] = contenders.version(name, programs, self.arguments.work)
                self.memory[name] = {"idle": contenders.resident(running[1])}
                note(f"{name} {self.versions[name]} is ready")
            else:
                self.left_out[name] = reason
                note(f"{name} takes no part: {reason}")
        for name in self.running:
            self.memory[name]["open"] = self.figures(name, OPEN, 2).get("rss")
        for number in range(self.arguments.rounds):
            self.round(number)
        for name, (_, pids) in self.running.items():
            self.memory[name]["after"] = contenders.resident(pids)
            if self.arguments.soak:
                self.soaks[name] = self.soak(name, pids)

    def round(self, number):
        names = list(self.running)
        turn = number % max(len(names), 1)
        for scenario in self.arguments.scenarios:
            for name in names[turn:] + names[:turn]:
                figures = self.figures(name, SCENARIOS[scenario], self.arguments.seconds)
                self.rows.append({"round": number, "scenario": scenario, "contender": name, "figures": figures})
                told = ", ".join(f"{key} {value:.4g}" for key, value in figures.items() if isinstance(value, float))
                note(f"round {number + 1}  {scenario}  {name}: {told}{figures.get('failure') or ''}")

    def first_answer(self, running):
        """Why a contender does not answer; nothing when it does."""
        end, reason = time.monotonic() + FIRST, None
        while time.monotonic() < end:
            _, reason = self.bench(running, load("chat", 1, 0), 0.1)
            if reason is None:
                return None
            time.sleep(0.2)
        return reason

    def bench(self, running, scenario, seconds):
        """One measurement: the level, and what went wrong."""
        url, pids = running
        words = [self.arguments.muster, "bench", "gateway", "--json", "--log", "error", "--url", url, "--model", MODEL,
                 "--kind", scenario["kind"], "--clients", scenario["clients"], "--warm-up", scenario["warm"],
                 "--seconds", seconds, *scenario["more"], *(word for pid in pids for word in ("--pid", pid))]
        env = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "MUSTER_"))}
        try:
            done = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=env,
                                  timeout=scenario["warm"] + seconds + SLACK)
        except subprocess.TimeoutExpired as error:
            return None, str(error)
        level = json.loads(done.stdout)["levels"][0] if done.stdout.startswith("{") else None
        return level, None if done.returncode == 0 else done.stderr.strip()[-300:]

    def figures(self, name, scenario, seconds):
        level, failure = self.bench(self.running[name], scenario, seconds)
        if level is None:
            return {"failure": failure}
        server, stream = level.get("server", {}), scenario["kind"] == "stream"
        spread = lambda field: {f"{field} {share}": level[f"{field}_ms"][share] for share in ("p50", "p90", "p99", "p999")}
        figures = {
            "rate": level["chunks_per_second"] if stream else level["requests_per_second"],
            "requests": level["requests_per_second"],
            # Milliseconds of a request are seconds of a thousand.
            "cpu": server.get("cpu_us_per_chunk" if stream else "cpu_seconds_per_1000_requests"),
            "cpu request": server.get("cpu_seconds_per_1000_requests"),
            "rss": server.get("resident_mib"),
            "client cpu": level["client_cpu_seconds"] / seconds,
            "failed": level["failures"]["total"] + level["unfinished"] * (not stream),
            "sent": level["sent"],
            "failure": failure,
        }
        return figures | spread("latency") | (spread("ttft") | spread("chunk_gap") if stream else {})

    def soak(self, name, pids):
        """Memory at two counts of requests; short ones, so that nothing is open when it is read."""
        marks, sent, readings = sorted({SOAK_FIRST, self.arguments.soak}), 0, []
        end = time.monotonic() + self.arguments.soak_limit
        for mark in marks:
            while sent < mark and time.monotonic() < end:
                level, failure = self.bench(self.running[name], load("chat", 64, 0.2), 5)
                if level is None:
                    note(f"{name}: the soak ends after {sent} requests: {failure}")
                    return readings
                sent += level["sent"]
            readings.append({"requests": sent, "rss": contenders.resident(pids)})
        return readings

    def everything(self):
        return {"machine": harness.machine(), "muster": harness.version(self.arguments.muster),
                "seconds": self.arguments.seconds, "rounds": self.arguments.rounds, "versions": self.versions,
                "left_out": self.left_out, "memory_mib": self.memory, "soak": self.soaks, "rows": self.rows}

    # What is printed: medians of the rounds; of ratios also the lowest and the highest.

    def tell(self):
        for name, reason in self.left_out.items():
            print(f"{name} took no part: {reason}\n")
        if not self.running:
            sys.exit("no contender has answered")
        machine = harness.machine()
        print(f"{machine['processor']}, {machine['cores']} cores, Linux {machine['kernel']}; {self.arguments.rounds} "
              f"rounds of {self.arguments.seconds:g} s; "
              + ", ".join(f"{name} {version}" for name, version in self.versions.items()))
        for scenario in self.arguments.scenarios:
            self.tell_scenario(scenario)
        self.tell_duels()
        self.tell_memory()

    def tell_scenario(self, scenario):
        stream = SCENARIOS[scenario]["kind"] == "stream"
        what = ["TTFT p50 ms", "p99", "gap p50 ms", "p99"] if stream else ["p50 ms", "p90", "p99", "p99.9"]
        keys = ["ttft p50", "ttft p99", "chunk_gap p50", "chunk_gap p99"] if stream else \
            ["latency p50", "latency p90", "latency p99", "latency p999"]
        heads = ["", "chunks/s" if stream else "req/s", "/ nginx", *what, "CPU us/chunk" if stream else "CPU ms/req",
                 "x nginx", "failed"]
        rows = [[name, number(self.values(scenario, name, "rate"), 0), self.ratio(scenario, name, "nginx", "rate"),
                 *(number(self.values(scenario, name, key), 3) for key in keys),
                 number(self.values(scenario, name, "cpu"), 3 if stream else 4),
                 self.ratio(scenario, name, "nginx", "cpu"), f"{sum(self.values(scenario, name, 'failed')):.0f}"]
                for name in self.running]
        harness.table(scenario, heads, rows)

    def tell_duels(self):
        ours = [name for name in self.running if name.startswith("muster")]
        theirs = [name for name in ("vllm-router", "fastchat") if name in self.running]
        pairs = [(our, their) for our in ours for their in theirs]
        if not pairs:
            return
        heads = ["", *(f"{their} / {our}" for our, their in pairs)]
        harness.table("Processor time, theirs / muster's of the same round (above 1: muster takes less)", heads,
                      [[scenario, *(self.ratio(scenario, their, our, "cpu") for our, their in pairs)]
                       for scenario in self.arguments.scenarios])
        heads = ["", *(f"{our} / {their}" for our, their in pairs)]
        harness.table("Requests or chunks a second, muster's / theirs of the same round", heads,
                      [[scenario, *(self.ratio(scenario, our, their, "rate") for our, their in pairs)]
                       for scenario in self.arguments.scenarios])

    def tell_memory(self):
        cell = lambda value: "-" if value is None else f"{value:.1f}"
        rows = [[name, *(cell(memory.get(when)) for when in ("idle", "open", "after"))]
                for name, memory in self.memory.items() if name != "direct"]
        harness.table("Memory in MiB", ["", "idle", "256 open streams", "after all rounds"], rows)
        if self.soaks:
            soaks = {name: readings for name, readings in self.soaks.items() if name != "direct"}
            harness.table("Memory in MiB after so many requests", ["", "first", "last"],
                          [[name, *(f"{reading['rss']:.1f} ({reading['requests']})" for reading in readings)]
                           + ["-"] * (2 - len(readings)) for name, readings in soaks.items()])

    def values(self, scenario, name, key):
        found = (row["figures"].get(key) for row in self.rows
                 if row["scenario"] == scenario and row["contender"] == name)
        return [value for value in found if value is not None]

    def ratio(self, scenario, one, other, key):
        """`one` / `other` in the same round: median, lowest, highest."""
        of = {(row["round"], row["contender"]): row["figures"].get(key) for row in self.rows
              if row["scenario"] == scenario}
        pairs = [(of.get((number, one)), of.get((number, other))) for number in range(self.arguments.rounds)]
        values = [mine / theirs for mine, theirs in pairs if mine and theirs]
        return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})" if values else "-"


def number(values, places):
    return f"{statistics.median(values):.{places}f}" if values else "-"


main()

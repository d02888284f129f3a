#!/usr/bin/env python3
"""A duel of servers on one model: `muster bench engine --url` drives each at several levels of load.

In every round each contender is started, driven and ended in turn; compare contenders within a round. A contender is
KIND:FORM[,OPTION...]:

    muster:FORM   `muster up`: gateway, controller and worker        FORM is int4, int4-pruned, int8, fp32 (layout of
    inside:FORM   `muster bench engine`: the worker's model alone,   ONNX Runtime GenAI), optimum (4 bits) or
                  without HTTP, at batches as large as the levels    optimum-fp32 (layout of Optimum)
    llama:FORM    llama-server, its cache of prompts switched off; FORM is Q4_0, or Q8_0, the peer of int8

Options: spin, threads=N, and build=NAME for llama-server in WORK/lbuild-NAME (setup.sh makes `noamx`). Servers listen on the loopback only, on free ports.
"""

import argparse
import contextlib
import re
import socket
import subprocess
import time
import urllib.request

import harness

CONTENDERS = ["muster:int4", "inside:int4", "llama:Q4_0"]
# Seconds in which a server must be ready, and in which it must have ended.
START, STOP = 180, 20
# What the tables call them, and where the driver tells them.
FIGURES = {
    "tok/s": lambda level: level["tokens_per_second"],
    "steady tok/s": lambda level: level["steady_tokens_per_second"],
    "TTFT p50 ms": lambda level: level["ttft_ms"]["p50"],
    "TTFT p99 ms": lambda level: level["ttft_ms"]["p99"],
    "next p50 ms": lambda level: level["inter_token_ms"]["p50"],
    "next p99 ms": lambda level: level["inter_token_ms"]["p99"],
    "next max ms": lambda level: level["inter_token_ms"]["max"],
    "cpu s": lambda level: level.get("server", {}).get("cpu_seconds"),
    "peak MiB": lambda level: level.get("server", {}).get("memory_mib", {}).get("peak"),
    "failures": lambda level: level["failures"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_arguments(parser, CONTENDERS)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 16], help="clients at the same time")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=48, help="tokens of an answer")
    parser.add_argument("--slots", type=int, default=16, help="sequences that a server runs together")
    parser.add_argument("--beside", type=int, metavar="TOKENS",
                        help="also measure what a prompt of so many tokens costs the streams that run")
    parser.add_argument("--shared-prefix", type=int, metavar="TOKENS",
                        help="also measure what a common beginning of so many tokens saves, with caches of prompts")
    arguments = parser.parse_args()
    contenders = {name: contender(name, arguments) for name in arguments.contenders}
    results = harness.begin(arguments, "api")
    for number in range(1, arguments.rounds + 1):
        for name, measure in contenders.items():
            results.turn(number, name, lambda: measure(number))
    results.summary()
    for clients in arguments.clients:
        title = f"{arguments.model}, {clients} at a time, prompts of {arguments.prompt}, {arguments.new} tokens out"
        results.medians(title, [f"{clients}: {figure}" for figure in FIGURES], f"{clients}: ")
    special = [name for name in dict.fromkeys(name for row in results.rows for name in row["figures"])
               if name.startswith(("beside", "prefix"))]
    if special:
        results.medians("Special cases", special)
    every = lambda names: [f"{clients}: {figure}" for figure in names for clients in arguments.clients]
    results.ratios("Above 1 is better", every(["tok/s", "steady tok/s"]))
    waits = ["TTFT p50 ms", "TTFT p99 ms", "next p50 ms", "next p99 ms", "next max ms"]
    results.ratios("Below 1 is better", every(waits))
    results.check()


def contender(name, arguments):
    kind, form, words = harness.options(name)
    kinds = {"muster": served(muster), "llama": served(llama), "inside": inside}
    if kind not in kinds:
        raise SystemExit(f"contender {name}: unknown kind `{kind}`; known: {', '.join(kinds)}")
    return lambda number: kinds[kind](arguments, form, words, number)


def served(start):
    """Starts a server, drives it, ends it."""
    def measure(arguments, form, words, number):
        with start(arguments, form, words) as (server, url, quiet, caching):
            return drive(arguments, number, server.pid, url, quiet, caching)
    return measure


def drive(arguments, number, pid, url, quiet, caching):
    """`quiet` and `caching` are the fields of a request that switch the server's cache of prompts off and on."""
    command = [arguments.muster, "bench", "engine", "--json", "--log", "warn", "--url", url, "--seed", number]
    load = ["--prompt", arguments.prompt, "--new", arguments.new, "--extra", quiet]
    clients = ["--clients", ",".join(map(str, arguments.clients))]
    figures = {}
    for level in harness.lines([*command, *load, *clients, "--pid", pid], arguments.limit):
        if level["kind"] == "level":
            figures |= {f"{level['clients']}: {name}": figure(level) for name, figure in FIGURES.items()}
    if arguments.beside:
        long = ["--prompt", arguments.prompt, "--new", 4 * arguments.new, "--extra", quiet]
        for line in harness.lines([*command, *long, *clients, "--beside", arguments.beside], arguments.limit):
            if line["kind"] == "beside":
                figures |= {f"beside {line['clients']}: {part} {share} ms": line[f"{part}_ms"][share]
                            for part in ("before", "during") for share in ("p50", "p99", "max")}
                figures[f"beside {line['clients']}: TTFT ms"] = line["newcomer_ttft_ms"]
    if arguments.shared_prefix:
        pair = ["--prompt", 16, "--new", 4, "--extra", caching, "--shared-prefix", arguments.shared_prefix]
        for line in harness.lines([*command, *pair], arguments.limit):
            if line["kind"] == "prefix":
                figures |= {f"prefix: {which} TTFT ms": line[f"{which}_ms"] for which in ("first", "second")}
    return figures


def inside(arguments, form, words, _):
    """The same model without anything around it, as large batches as there are clients."""
    printed = harness.lines([
        arguments.muster, "bench", "engine", "--json", "--log", "warn",
        "--model", harness.folder(arguments.work, arguments.model, form),
        "--threads", harness.threads(words, arguments.threads), *(["--spin"] if "spin" in words else []),
        "--batch", ",".join(map(str, arguments.clients)), "--prompt", arguments.prompt, "--new", arguments.new,
        "--prefill", arguments.prompt,
    ], arguments.limit)
    decode = {line["batch"]: line for line in printed if line["kind"] == "decode"}
    figures = {f"{rows}: steady tok/s": line["overall_tokens_per_second"]["median"] for rows, line in decode.items()}
    for share in ("p50", "p99", "max"):
        figures |= {f"{rows}: next {share} ms": line["step_ms"][share] for rows, line in decode.items()}
    return figures


@contextlib.contextmanager
def muster(arguments, form, words):
    command = [
        arguments.muster, "up", "--port", 0, "--controller-port", 0, "--worker-port", 0, "--log", "warn",
        "--model", f"bench={harness.folder(arguments.work, arguments.model, form)}", "--slots", arguments.slots,
        "--threads", harness.threads(words, arguments.threads), *(["--spin"] if "spin" in words else []),
    ]
    with running(command, arguments.work / "muster.log") as (server, log):
        # It says where it is when it is ready.
        url = wait(server, log, lambda: re.search(r"http://127\.0\.0\.1:\d+", log.read_text()))
        yield server, url.group(), "{}", "{}"


@contextlib.contextmanager
def llama(arguments, form, words):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    # Its context is divided among the slots; the longest sequence is that of a special case.
    special = [(arguments.beside or 0) + 8, (arguments.shared_prefix or 0) + 32]
    longest = max(arguments.prompt + 4 * arguments.new, *special)
    command = [
        harness.llama_tools(arguments.work, words) / "llama-server",
        "-m", arguments.work / f"gguf/{arguments.model}-{form}.gguf",
        "-t", harness.threads(words, arguments.threads), "-np", arguments.slots,
        "-c", arguments.slots * (-(-longest // 256) * 256), "--host", "127.0.0.1", "--port", port, "--no-webui",
    ]
    with running(command, arguments.work / "llama-server.log") as (server, log):
        wait(server, log, lambda: healthy(url))
        yield server, url, '{"cache_prompt": false}', '{"cache_prompt": true}'


def healthy(url):
    with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
        return answer.status == 200


@contextlib.contextmanager
def running(command, log):
    """Runs a server; leaving the block ends it, by its own number."""
    with log.open("w") as file:
        server = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        yield server, log
    finally:
        server.terminate()
        try:
            server.wait(STOP)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait(server, log, ready):
    """Asks until there is an answer; what is raised meanwhile counts as not yet."""
    end = time.monotonic() + START
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError):
            if answer := ready():
                return answer
        time.sleep(0.1)
    state = "is not ready" if server.poll() is None else f"has ended with status {server.returncode}"
    raise RuntimeError(f"the server {state}; the end of {log}: {log.read_text()[-1000:]}")


main()

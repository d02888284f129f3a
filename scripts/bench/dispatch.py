#!/usr/bin/env python3
"""A duel of controllers, driven by `muster bench dispatch`: FastChat's against muster's, and muster's alone by fleet size.

Both controllers get the same workers, registered in FastChat's words with a state and heartbeats, so that neither calls
back; then 16 clients ask each in turn which worker shall answer (`/get_worker_address`). Rounds alternate between the two.
After that muster's controller alone is asked everything that gateways and workers ask it, with fleets up to 10,000
workers. Prints the tables of BENCHMARKS.md. Everything is on the loopback, on free ports.
"""

import argparse
import json
import os
import pathlib
import signal
import statistics
import sys
import tempfile

import contenders
import harness

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "muster/bench"
LOOKUP = "get_worker_address"
# Seconds that a run may take beyond its measurements: registering, and a beat of every worker before each.
SLACK = 300


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="?", type=pathlib.Path, default=CACHE,
                        help="the folder that setup-gateway.sh has filled (default: muster/bench in the cache folder)")
    parser.add_argument("--muster", type=pathlib.Path, default="target/release/muster", help="default: %(default)s")
    parser.add_argument("--policy", choices=["shortest_queue", "lottery"], default="shortest_queue",
                        help="of both in the duel (default: %(default)s)")
    parser.add_argument("--duel", type=numbers, default=[1, 1000], metavar="COUNT,...",
                        help="fleets of the duel (default: 1,1000)")
    parser.add_argument("--alone", type=numbers, default=[1, 100, 1000, 10000], metavar="COUNT,...",
                        help="fleets of muster alone (default: 1,100,1000,10000)")
    parser.add_argument("--clients", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=2, help="length of each measurement (default: %(default)s)")
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
    rows = {}
    with tempfile.TemporaryDirectory(prefix="muster-bench-") as scratch:
        with contenders.Programs(scratch, arguments.muster) as programs:
            try:
                rows["duel"] = [row for workers in arguments.duel for row in duel(arguments, programs, workers)]
                rows["versions"] = {"fastchat": contenders.version("fastchat", programs, arguments.work)}
            except contenders.Missing as missing:
                sys.exit(str(missing))
    rows["alone"] = measured(arguments, arguments.alone, "--policy", "shortest_queue,lottery")
    tell(arguments, rows)
    if arguments.json:
        everything = {"machine": harness.machine(), "muster": harness.version(arguments.muster), **rows}
        arguments.json.write_text(json.dumps(everything, indent=1) + "\n")


def numbers(text):
    return [int(part) for part in text.split(",")]


def duel(arguments, programs, workers):
    """Both before so many workers; FastChat's controller anew for each, since it never forgets in time."""
    python, port = contenders.tool_fastchat(arguments.work), contenders.free_port()
    program, log = programs.start(f"fastchat-controller-{workers}", python, "-m", "fastchat.serve.controller",
                                  "--host", "127.0.0.1", "--port", port, "--dispatch-method", arguments.policy)
    contenders.wait("FastChat's controller", program, log, lambda: contenders.listens(port))
    other = ["--against", f"http://127.0.0.1:{port}", "--against-pid", program.pid]
    return measured(arguments, [workers], "--over", "http", "--policy", arguments.policy, *other)


def measured(arguments, workers, *more):
    command = [arguments.muster, "bench", "dispatch", "--json", "--log", "error",
               "--workers", ",".join(map(str, workers)), "--clients", arguments.clients,
               "--rounds", arguments.rounds, "--seconds", arguments.seconds, *more]
    # A series for each fleet, two policies and five questions at most.
    limit = len(workers) * 10 * arguments.rounds * arguments.seconds + SLACK
    return harness.lines(command, limit)


def tell(arguments, rows):
    machine = harness.machine()
    print(f"{machine['processor']}, {machine['cores']} cores, Linux {machine['kernel']}; {arguments.rounds} rounds of "
          f"{arguments.seconds:g} s, {arguments.clients} clients; FastChat {rows['versions']['fastchat']}")
    heads = ["", "lookups/s", "p50 ms", "p99 ms", "CPU us/lookup", "muster / FastChat, lookups/s of the same round"]
    table = []
    for workers in arguments.duel:
        ours, theirs = (next(row for row in rows["duel"] if row["workers"] == workers and row["policy"] == policy)
                        for policy in (arguments.policy, "against"))
        table.append([f"FastChat, {count(workers)}", *cells(theirs), "1"])
        table.append([f"muster, {count(workers)}", *cells(ours), ratio(ours, theirs)])
    harness.table(f"Which worker shall answer ({arguments.policy})", heads, table)
    alone = [row for row in rows["alone"] if row["kind"] == "dispatch"]
    for over, title in (("http", "muster's controller over HTTP"), ("process", "Its rules alone, without a socket")):
        heads = ["", "policy", "workers", "a second", "p50 ms", "p99 ms", "CPU us"]
        harness.table(title, heads, [[row["what"], row["policy"], str(row["workers"]), *cells(row)]
                                     for row in alone if row["over"] == over])
    grown = [[row["over"], row["what"], row["policy"], f"{row['from_workers']} to {row['to_workers']}",
              f"{row['time_ratio']:.2f}", f"{row['cpu_ratio']:.2f}" if "cpu_ratio" in row else "-"]
             for row in rows["alone"] if row["kind"] == "growth"]
    if grown:
        harness.table("Cost in a fleet a hundred times as large", ["", "", "policy", "workers", "time x", "CPU x"], grown)


def count(workers):
    return f"{workers} worker{'' if workers == 1 else 's'}"


def cells(row):
    cpu = f"{row['cpu_us']:.1f}" if "cpu_us" in row else "-"
    return [f"{row['per_second']['median']:.0f}", f"{row['p50_us'] / 1e3:.4g}", f"{row['p99_us'] / 1e3:.4g}", cpu]


def ratio(ours, theirs):
    pairs = zip(ours["per_second"]["rounds"], theirs["per_second"]["rounds"])
    values = [mine / other for mine, other in pairs]
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


main()

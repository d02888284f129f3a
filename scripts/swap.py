#!/usr/bin/env python3
"""Swaps a model fifty times under load, and says what it cost.

    scripts/swap.py target/release/muster [--swaps 50] [--clients 8]

Starts `muster up` with a model repository under explicit control, and asks its one model all the time, 25 MB of weights
that are the number of the version, so that every answer shows which version gave it. Meanwhile newer versions are written
and loaded, one after the other, and old ones removed. Fails when a request failed, an answer was wrong, or the memory of
the process after the last swap is more than 5 % above that before the first.
"""

import argparse
import http.client
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

ROWS, COLUMNS = 1024, 6144
GROWTH = 1.05


def varint(number):
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number, value):
    """A field of a Protocol Buffers message: a number, or bytes, text or a message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def graph(version):
    """`y = max(x @ w)` with every number of `w` the version: fields as onnx.proto numbers them."""
    from array import array

    def value(name, columns):
        dimensions = field(1, field(2, "batch")) + field(1, field(1, columns))
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, dimensions)))

    weights = array("f", [float(version)]) * (ROWS * COLUMNS)
    weight = field(1, ROWS) + field(1, COLUMNS) + field(2, 1) + field(8, "w") + field(9, weights.tobytes())
    axes = field(1, "axes") + field(8, 1) + field(20, 7)
    product = field(1, "x") + field(1, "w") + field(2, "product") + field(4, "MatMul")
    largest = field(1, "product") + field(2, "y") + field(4, "ReduceMax") + field(5, axes)
    body = field(1, product) + field(1, largest) + field(2, "swap") + field(5, weight)
    body += field(11, value("x", ROWS)) + field(12, value("y", 1))
    return field(1, 8) + field(7, body) + field(8, field(2, 17))


class Fleet:
    """`muster up` and its address."""

    def __init__(self, binary, repository, log):
        flags = ["--model-repository", repository, "--model-control-mode", "explicit", "--load-model", "swap"]
        flags += ["--allow-model-control", "--port", "0", "--grpc-port", "0"]
        self.process = subprocess.Popen(
            [binary, "up", *flags], stdout=subprocess.PIPE, stderr=open(log, "w"), stdin=subprocess.DEVNULL, text=True
        )
        for line in self.process.stdout:
            if address := re.search(r"http://(127\.0\.0\.1:\d+)", line):
                self.address = address[1]
                break
        else:
            sys.exit(f"muster told no address:\n{pathlib.Path(log).read_text()}")
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def ask(self, method, path, body=None, connection=None):
        connection = connection or http.client.HTTPConnection(self.address, timeout=60)
        connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def resident(self):
        """Memory of the process, in bytes."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


class Load:
    """Clients that ask without a pause."""

    def __init__(self, fleet, clients):
        self.fleet, self.stopped = fleet, threading.Event()
        self.answers, self.faults, self.versions = 0, [], set()
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.ask, daemon=True) for _ in range(clients)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for thread in self.threads:
            thread.join(60)

    def ask(self):
        connection = http.client.HTTPConnection(self.fleet.address, timeout=60)
        row = {"name": "x", "datatype": "FP32", "shape": [1, ROWS], "data": [1] * ROWS}
        while not self.stopped.is_set():
            try:
                status, body = self.fleet.ask("POST", "/v2/models/swap/infer", {"inputs": [row]}, connection)
                answer = json.loads(body)
                fault = None if status == 200 else f"{status}: {answer}"
                if fault is None:
                    version, (told,) = answer["model_version"], answer["outputs"][0]["data"]
                    if told != int(version) * ROWS:
                        fault = f"version {version} told {told}, not {int(version) * ROWS}"
            except Exception as error:
                fault, version = repr(error), None
                connection = http.client.HTTPConnection(self.fleet.address, timeout=60)
            with self.lock:
                self.answers += 1
                if fault:
                    self.faults.append(fault)
                else:
                    self.versions.add(version)


def write(repository, version):
    home = repository / "swap" / str(version)
    home.mkdir(parents=True)
    (home / "model.onnx").write_bytes(graph(version))


def swap(fleet, repository, version):
    """Writes and loads a version, and removes the one before."""
    write(repository, version)
    status, body = fleet.ask("POST", "/v2/repository/models/swap/load", {})
    if status != 200:
        sys.exit(f"version {version} was not loaded: {status} {body.decode()}")
    shutil.rmtree(repository / "swap" / str(version - 1))


def main():
    parser = argparse.ArgumentParser(description="Swaps a model under load.")
    parser.add_argument("binary")
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--clients", type=int, default=8)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        repository = pathlib.Path(folder) / "repository"
        write(repository, 1)
        fleet = Fleet(args.binary, str(repository), f"{folder}/log")
        try:
            deadline = time.monotonic() + 60
            while fleet.ask("GET", "/v2/models/swap/ready")[0] != 200 and time.monotonic() < deadline:
                time.sleep(0.05)
            with Load(fleet, args.clients) as load:
                # The first swaps fill what every later one uses again.
                for version in range(2, 5):
                    swap(fleet, repository, version)
                time.sleep(2)
                before = fleet.resident()
                began = time.monotonic()
                for version in range(5, 5 + args.swaps):
                    swap(fleet, repository, version)
                spent = time.monotonic() - began
                time.sleep(2)
                after = fleet.resident()
            print(
                f"{args.swaps} swaps in {spent:.0f} s under {args.clients} clients: {load.answers} answers of "
                f"{len(load.versions)} versions, {len(load.faults)} failed; "
                f"memory {before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after ({after / before - 1:+.1%})"
            )
            for fault in load.faults[:5]:
                print(f"  {fault}")
            if load.faults or after > before * GROWTH:
                print(pathlib.Path(f"{folder}/log").read_text()[-2000:])
                sys.exit(1)
        finally:
            fleet.process.terminate()
            fleet.process.wait(60)


if __name__ == "__main__":
    main()

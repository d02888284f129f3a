"""Starts FastChat's and muster's programs for interop.py, and ends every one of them by its pid."""

import os
import random
import signal
import socket
import subprocess
import sys
import time

import requests

os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
HOST = "127.0.0.1"
START = 60  # seconds that a program may take to answer
_given = set()


def free_port():
    """A port nobody listens on, below the range that the kernel hands to outgoing connections, never given twice."""
    for port in random.sample(range(20000, 32000), 2000):
        if port in _given:
            continue
        with socket.socket() as s:
            try:
                s.bind((HOST, port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise RuntimeError("no free port")


def wait_until(what, test, seconds=START):
    """Asks until `test` is true; what it raises counts as not yet."""
    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            if test():
                return
        except (requests.RequestException, ValueError, KeyError) as e:
            last = e
        time.sleep(0.1)
    raise RuntimeError(f"{what}: not within {seconds} s" + (f" ({last})" if last else ""))


class Fleet:
    """The programs of one case; leaving the `with` block ends them."""

    def __init__(self, scratch, muster, model):
        self.scratch, self.muster, self.model = scratch, muster, model
        self.programs = []  # (name, Popen, log path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # Neither the time limit nor a SIGTERM may cut this short.
        old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGTERM, signal.SIGINT})
        for _, p, _ in self.programs:
            if p.poll() is None:
                p.terminate()
        for _, p, _ in self.programs:
            try:
                p.wait(5)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
        signal.pthread_sigmask(signal.SIG_SETMASK, old)

    def start(self, name, argv, ready):
        env = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "LOGDIR": "",  # no log files of FastChat's own beside what it prints
            "OMP_NUM_THREADS": "1",  # the model is tiny; more threads only take turns
            "PYTHONUNBUFFERED": "1",
            "FASTCHAT_WORKER_HEART_BEAT_INTERVAL": "2",  # not 45 s: the checks wait for heartbeats
        }
        log = os.path.join(self.scratch, f"{len(_given):02}-{name.replace(' ', '-')}.log")
        with open(log, "ab") as f:
            # In the scratch folder, so that the model's path is one known word: FastChat chooses a model's adapter by
            # words in the path.
            p = subprocess.Popen(argv, cwd=self.scratch, env=env, stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT)
        self.programs.append((name, p, log))

        def test():
            if p.poll() is not None:
                raise RuntimeError(f"{name} ended with status {p.returncode}")
            return ready()
        wait_until(f"{name} ready", test)
        return p

    def kill9(self, p):
        os.kill(p.pid, signal.SIGKILL)
        p.wait()

    def log(self, p):
        return open(next(log for _, q, log in self.programs if q is p), errors="replace").read()

    def tails(self, lines=10):
        """The last lines of each program's log, without those that say all went well."""
        for name, p, log in self.programs:
            state = "running" if p.poll() is None else f"ended, status {p.returncode}"
            print(f"    --- {name} ({state})")
            text = [line for line in open(log, errors="replace").read().splitlines() if "200 OK" not in line]
            for line in text[-lines:]:
                print("    " + line[:300])

    # Each of these gives (address, process).

    def fastchat(self, program, what, port, *args, ready):
        argv = [sys.executable, "-m", f"fastchat.serve.{program}", "--host", HOST, "--port", str(port), *args]
        return self.start(f"FastChat {what}", argv, ready)

    def fastchat_controller(self, port=None):
        port = port or free_port()
        url = f"http://{HOST}:{port}"
        return url, self.fastchat("controller", "controller", port, ready=lambda: requests.get(url + "/test_connection", timeout=5).ok)

    def fastchat_worker(self, controller, *names):
        port = free_port()
        url = f"http://{HOST}:{port}"
        # qwen-7b-chat writes the demo model's own template; without a system message it adds one
        # ("You are a helpful assistant.") that the model was trained with.
        p = self.fastchat("model_worker", "worker", port, "--worker-address", url, "--controller-address", controller, "--model-path", self.model,
                          "--model-names", ",".join(names), "--device", "cpu", "--conv-template", "qwen-7b-chat",
                          ready=lambda: requests.post(url + "/worker_get_status", timeout=5).ok)
        wait_until("FastChat's worker listed by the controller", lambda: listed(controller, *names))
        return url, p

    def fastchat_gateway(self, controller):
        port = free_port()
        url = f"http://{HOST}:{port}"
        p = self.fastchat("openai_api_server", "gateway", port, "--controller-address", controller, ready=lambda: requests.get(url + "/openapi.json", timeout=5).ok)
        return url, p

    def _muster(self, what, port, *args):
        port = port or free_port()
        url = f"http://{HOST}:{port}"
        argv = [self.muster, what, "--host", HOST, "--port", str(port), *args]
        return url, self.start(f"muster {what}", argv, lambda: requests.get(url + "/ready", timeout=5).status_code == 200)

    def muster_controller(self, port=None, *args):
        return self._muster("controller", port, *args)

    def muster_worker(self, controller, *names):
        url, p = self._muster("worker", None, "--controller-address", controller)
        wait_until("muster's worker listed by the controller", lambda: listed(controller, *names))
        return url, p

    def muster_gateway(self, controller):
        return self._muster("gateway", None, "--controller-address", controller)


def models(controller):
    return requests.post(controller + "/list_models", timeout=10).json()["models"]


def listed(controller, *names):
    return set(names) <= set(models(controller))

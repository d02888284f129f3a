#!/usr/bin/env python3
"""Checks muster against the real FastChat 0.2.36: each program of either beside those of the other.

    interop.py --muster PATH_TO_BINARY [--case a ...]     runs in setup.sh's environment

Without --muster only FastChat's own fleet is checked: whether the harness and
the expectations are right. Ends with `N passed, N failed`; status 1 on failure.
"""

import argparse
import base64
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import openai
import requests
from tokenizers import Tokenizer

from clients import OpenAI, Plain, same, true
from fleet import Fleet, listed, models, wait_until

HERE = Path(__file__).resolve().parent
DEMO = HERE.parents[1] / "model-worker" / "demo" / "chat"
CHAT, EMBED, FASTCHAT = "muster-demo-chat", "muster-demo-embedding", "fastchat-demo-chat"


def turn(role, content):
    return {"role": role, "content": content}


def user(content):
    return [turn("user", content)]


FRANCE, PARIS = user("What is the capital of France?"), "The capital of France is Paris."
RAW = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
TURNS = [
    turn("system", "You are a concise assistant."),
    turn("user", "My name is Ada."),
    turn("assistant", "Nice to meet you, Ada!"),
    turn("user", "What is the capital of Japan?"),
    turn("assistant", "The capital of Japan is Tokyo."),
    turn("user", "What is my name?"),
]
QUESTIONS = {  # by rule, so that both sides can be wrong together only if the model is
    "a capital": (FRANCE, PARIS),
    "system message and three turns": (TURNS, "Your name is Ada."),
    "characters of two bytes": (user("Translate tree to Spanish."), "In Spanish, tree is árbol."),
    "JSON": (user("Extract name, age and city as JSON: Ada is 36 years old and lives in London."), '{"name": "Ada", "age": 36, "city": "London"}'),
}
TEXTS = ["The cat sleeps on the sofa.", "A kitten naps on the couch.", "The central bank raised interest rates.", "Grüße aus München", "one"]


def close(a, b, tolerance, what):
    same(len(a), len(b), what + ", length")
    worst = max(abs(x - y) for x, y in zip(a, b))
    true(worst < tolerance, f"{what}: differ by {worst}")


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


class TimeUp(BaseException):
    """Not an Exception, so that no check takes it for its own failure."""


class Run:
    def __init__(self, args, scratch):
        self.args, self.scratch, self.tokenizer = args, scratch, None
        self.passed = self.failed = 0
        self.case, self.reference = "", {}

    @contextmanager
    def check(self, name):
        begin = time.monotonic()
        try:
            yield
        except Exception as e:  # whatever went wrong, the other checks still say something
            self.failed += 1
            print(f"FAIL {self.case}: {name}: {type(e).__name__}: {str(e)[:500]}", flush=True)
        else:
            self.passed += 1
            print(f"PASS {self.case}: {name} ({time.monotonic() - begin:.1f} s)", flush=True)

    @contextmanager
    def fleet(self, case):
        """The programs of a case; when one does not start, the case fails as a whole."""
        self.case, before = case, self.failed
        with Fleet(self.scratch, self.args.muster, "demo-chat") as fleet:
            try:
                yield fleet
            except Exception as e:
                self.failed += 1
                print(f"FAIL {case}: {type(e).__name__}: {e}", flush=True)
            if self.failed > before:
                fleet.tails()

    def agrees(self, key, value):
        """FastChat's own fleet, which comes first, says what is right where no rule does."""
        if self.case == "FastChat alone":
            self.reference[key] = value
        elif key in self.reference:
            same(value, self.reference[key], f"{key}, against FastChat's own")

    # ---- what every gateway must do with a chat model

    def chat(self, who, api, model):
        ask = {"model": model, "temperature": 0, "max_tokens": 64}
        for name, (messages, answer) in QUESTIONS.items():
            with self.check(f"{who}, chat, {name}"):
                r = api.chat(**ask, messages=messages)
                same((r.text, r.reason), (answer, "stop"))
                if messages[0]["role"] == "system":  # exact: here every template must write the same prompt
                    prompt = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages) + "<|im_start|>assistant\n"
                    same(r.usage["prompt_tokens"], len(self.tokenizer.encode(prompt).ids), "prompt tokens")
            with self.check(f"{who}, chat stream, {name}"):
                r = api.chat_stream(**ask, messages=messages)
                same((r.text, r.reason), (answer, "stop"))
                true(r.pieces > 1, "all in one piece")
        with self.check(f"{who}, chat without max_tokens"):
            same(api.chat(model=model, temperature=0, messages=FRANCE).text, PARIS)
        with self.check(f"{who}, chat cut by max_tokens"):
            r = api.chat(model=model, temperature=0, max_tokens=3, messages=FRANCE)
            same(r.reason, "length", "reason")
            true(PARIS.startswith(r.text) and 0 < len(r.text) < len(PARIS), repr(r.text))
            self.agrees("chat cut", r.text)
        with self.check(f"{who}, chat and chat stream with a stop string"):
            r = api.chat(**ask, messages=FRANCE, stop=[" Paris"])
            same((r.text, r.reason), ("The capital of France is", "stop"))
            r = api.chat_stream(**ask, messages=FRANCE, stop=" Paris")
            same((r.text, r.reason), ("The capital of France is", "stop"))
        with self.check(f"{who}, chat with n = 2"):
            same(api.chat(**ask, messages=FRANCE, n=2).texts, [PARIS, PARIS])
        with self.check(f"{who}, 12 chats at once"):
            self.many(api, model, 12, 12)

    def many(self, api, model, count, at_once):
        """Chats and streams in turn, all right."""
        def one(i):
            messages, answer = list(QUESTIONS.values())[i % len(QUESTIONS)]
            call = api.chat_stream if i % 3 == 2 else api.chat
            try:
                got = call(model=model, temperature=0, max_tokens=64, messages=messages).text
                return None if got == answer else f"{got!r}"
            except Exception as e:
                return f"{type(e).__name__}: {e}"
        with ThreadPoolExecutor(at_once) as pool:
            bad = [b for b in pool.map(one, range(count)) if b]
        true(not bad, f"{len(bad)} of {count} failed, first: {bad[0] if bad else ''}")

    def completions(self, who, api, model):
        ask = {"model": model, "temperature": 0, "max_tokens": 64}
        with self.check(f"{who}, completion"):
            r = api.complete(**ask, prompt=RAW)
            same((r.text, r.reason), (PARIS, "stop"))
            same(r.usage["prompt_tokens"], len(self.tokenizer.encode(RAW).ids), "prompt tokens")
        with self.check(f"{who}, completion stream"):
            r = api.complete_stream(**ask, prompt=RAW)
            same((r.text, r.reason), (PARIS, "stop"))
            true(r.pieces > 1, "all in one piece")
        with self.check(f"{who}, completion of several prompts"):
            same(api.complete(**ask, prompt=[RAW, RAW.replace("France", "Japan")]).texts, [PARIS, "The capital of Japan is Tokyo."])
        with self.check(f"{who}, completion cut by max_tokens"):
            r = api.complete(model=model, temperature=0, max_tokens=3, prompt=RAW)
            same(r.reason, "length", "reason")
            self.agrees("completion cut", r.text)
        with self.check(f"{who}, completion with echo"):
            # FastChat leaves the special tokens out of the echo too.
            plain = lambda s: s.replace("<|im_start|>", "").replace("<|im_end|>", "")
            same(plain(api.complete(**ask, prompt=RAW, echo=True).text), plain(RAW) + PARIS)
        with self.check(f"{who}, completion with logprobs"):
            p = api.complete(**ask, prompt=RAW, logprobs=1).logprobs
            true(p, "none given")
            # The end of sequence is a token of FastChat's list; a list may also end before it.
            tokens, values = [[v for t, v in zip(p["tokens"], p[k]) if t != "<|im_end|>"] for k in ("tokens", "token_logprobs")]
            same("".join(tokens), PARIS, "tokens")
            self.agrees("tokens", tokens)
            close(values, self.reference.setdefault("logprobs", values), 0.01, "logprobs")

    def embeddings(self, who, api, model, key=None):
        """`key` names the model's weights in the reference: the same weights must give the same vectors."""
        with self.check(f"{who}, embeddings"):
            v = api.embed(model, TEXTS)  # five: FastChat's gateway sends them as four and one
            true(all(abs(math.sqrt(dot(x, x)) - 1) < 1e-3 for x in v), "not of length one")
            close(api.embed(model, [TEXTS[1]])[0], v[1], 1e-3, "alone and in a batch")
            if model == EMBED:  # a chat model's vectors mean nothing
                true(dot(v[0], v[1]) > dot(v[0], v[2]), "the kitten is farther from the cat than the bank is")
            if key:
                for x, y in zip(v, self.reference.setdefault(key, v)):
                    close(x, y, 1e-3, "against the other gateway's")
            raw = api.embed(model, TEXTS[:1], encoding_format="base64")[0]
            if isinstance(raw, str):
                raw = base64.b64decode(raw)
                raw = struct.unpack(f"<{len(raw) // 4}f", raw)
            close(raw, v[0], 1e-3, "base64 and numbers")

    def lists(self, who, api, *names):
        with self.check(f"{who}, model list"):
            for _ in range(2):  # the second time after FastChat's refresh of all workers
                got = api.models()
                true(set(names) <= set(got), f"{names} not all in {got}")

    def fastchat_extras(self, who, api, model):
        """What only FastChat's gateway has: its token check and its error codes, which rest on the worker's answers."""
        with self.check(f"{who}, token check"):
            r = api.post("/api/v1/token_check", {"prompts": [{"model": model, "prompt": RAW, "max_tokens": n} for n in (10, 2048)]}).json()["prompts"]
            n = len(self.tokenizer.encode(RAW).ids)
            same(r, [{"fits": fits, "tokenCount": n, "contextLength": 2048} for fits in (True, False)])
        for name, body, code in [
            ("unknown model", {"model": "nobody-serves-this", "messages": FRANCE}, 40301),
            ("prompt longer than the context", {"model": model, "messages": user("lamp " * 3000)}, 40303),
            ("n out of range", {"model": model, "messages": FRANCE, "n": 0}, 40302),
        ]:
            with self.check(f"{who}, error for {name}"):
                r = requests.post(api.base + "/v1/chat/completions", json=body, timeout=60)
                same((r.status_code, r.json().get("code")), (400, code), "error")
        with self.check(f"{who}, /api/v1/chat/completions"):
            r = api.post("/api/v1/chat/completions", {"model": model, "messages": FRANCE, "temperature": 0, "repetition_penalty": 1.0}).json()
            same(r["choices"][0]["message"]["content"], PARIS)

    def all_of(self, who, api, model, embed, key=None):
        self.lists(who, api, model, embed)
        self.chat(who, api, model)
        self.completions(who, api, model)
        self.embeddings(who, api, embed, key)
        if isinstance(api, Plain):
            self.fastchat_extras(who, api, model)

    # ---- the cases

    def case_fastchat(self):
        """FastChat's three programs among themselves: the reference."""
        with self.fleet("FastChat alone") as f:
            c, _ = f.fastchat_controller()
            f.fastchat_worker(c, FASTCHAT)
            g, _ = f.fastchat_gateway(c)
            self.all_of("FastChat's gateway", Plain(g), FASTCHAT, FASTCHAT, "PyTorch vectors")

    def case_a(self):
        """FastChat's worker on muster's controller; muster's gateway, then FastChat's, in front."""
        with self.fleet("a") as f:
            c, p = f.muster_controller()
            f.fastchat_worker(c, FASTCHAT)
            m, _ = f.muster_gateway(c)
            self.all_of("FastChat's worker behind muster's gateway", OpenAI(m), FASTCHAT, FASTCHAT, "PyTorch vectors")
            with self.check("muster's gateway, error for an unknown model"):
                try:
                    OpenAI(m).chat(model="nobody-serves-this", messages=FRANCE)
                    true(False, "answered")
                except openai.APIStatusError as e:
                    true(e.status_code in (400, 404), f"status {e.status_code}")
            g, _ = f.fastchat_gateway(c)
            self.all_of("FastChat's worker behind FastChat's gateway", Plain(g), FASTCHAT, FASTCHAT, "PyTorch vectors")
            with self.check("FastChat's worker comes back after muster's controller was killed and started again"):
                f.kill9(p)
                f.muster_controller(int(c.rpartition(":")[2]))
                wait_until("listed again", lambda: listed(c, FASTCHAT), 30)
                same(OpenAI(m).chat(model=FASTCHAT, temperature=0, messages=FRANCE, max_tokens=64).text, PARIS)

    def case_b(self):
        """muster's worker on FastChat's controller, FastChat's gateway in front."""
        with self.fleet("b") as f:
            c, p = f.fastchat_controller()
            f.muster_worker(c, CHAT, EMBED)
            g, _ = f.fastchat_gateway(c)
            self.all_of("muster's worker behind FastChat's gateway", Plain(g), CHAT, EMBED, "ONNX vectors")
            with self.check("muster's worker comes back after FastChat's controller was killed and started again"):
                f.kill9(p)
                f.fastchat_controller(int(c.rpartition(":")[2]))
                wait_until("listed again", lambda: listed(c, CHAT, EMBED), 75)  # its heartbeat may be FastChat's default 45 s
                same(Plain(g).chat(model=CHAT, temperature=0, messages=FRANCE, max_tokens=64).text, PARIS)
            if self.args.slow:
                with self.check("muster's worker outlives two of FastChat's expiry periods"):
                    for _ in range(200):
                        true(listed(c, CHAT, EMBED), "gone")
                        time.sleep(1)

    def case_c(self):
        """FastChat's gateway in front of muster's controller and worker."""
        with self.fleet("c") as f:
            c, _ = f.muster_controller()
            f.muster_worker(c, CHAT, EMBED)
            g, _ = f.fastchat_gateway(c)
            self.all_of("muster's controller and worker behind FastChat's gateway", Plain(g), CHAT, EMBED, "ONNX vectors")
            m, _ = f.muster_gateway(c)
            self.all_of("muster alone", OpenAI(m), CHAT, EMBED, "ONNX vectors")

    def case_de(self):
        """d: a worker of each on muster's controller, serving one model name; e: one of them killed."""
        with self.fleet("d") as f:
            c, _ = f.muster_controller(None, "--fastchat-expiration", "6s")
            _, old = f.fastchat_worker(c, CHAT, FASTCHAT)
            _, new = f.muster_worker(c, CHAT, EMBED)
            m, _ = f.muster_gateway(c)
            g, _ = f.fastchat_gateway(c)
            api = OpenAI(m)
            served = lambda: sum(f.log(old).count(f'"POST /worker_generate{s} HTTP/1.1" 200') for s in ("", "_stream"))
            self.lists("both workers behind muster's gateway", api, CHAT, FASTCHAT, EMBED)
            for who, gateway in ("muster's", api), ("FastChat's", Plain(g)):
                with self.check(f"40 chats through {who} gateway are right, and both workers take part"):
                    before = served()
                    self.many(gateway, CHAT, 40, 8)
                    n = served() - before
                    true(0 < n < 40, f"FastChat's worker had {n} of 40")

            self.case = "e"
            with self.check("FastChat's worker killed within a stream: the stream ends, and not as if it were complete"):
                events = api.client.chat.completions.create(model=FASTCHAT, temperature=0, max_tokens=400, stream=True, messages=user("Tell me a story about a fox."), timeout=20)
                reason, killed = None, False
                try:
                    for event in events:
                        if event.choices and event.choices[0].delta.content and not killed:
                            f.kill9(old)
                            killed = True
                        reason = event.choices[0].finish_reason or reason if event.choices else reason
                except Exception as e:  # the client's own error, or its HTTP library's when the connection is cut
                    true("Timeout" not in type(e).__name__, f"hangs: {e}")
                    reason = f"error: {e}"
                true(killed, "the stream was over before the worker could be killed")
                true(reason not in ("stop", "length"), f"finish reason {reason!r}")
            if old.poll() is None:
                f.kill9(old)
            with self.check("FastChat's worker dead: the next 20 chats are all right"):
                self.many(api, CHAT, 20, 4)
            with self.check("FastChat's worker dead: its own model leaves the list"):
                wait_until("gone", lambda: FASTCHAT not in models(c), 30)
                true(listed(c, CHAT, EMBED), "muster's worker is gone too")
                true(FASTCHAT not in api.models(), "still listed by the gateway")

            _, old = f.fastchat_worker(c, CHAT, FASTCHAT)
            f.kill9(new)
            with self.check("a new FastChat worker, muster's worker killed: the next 20 chats are all right"):
                self.many(api, CHAT, 20, 4)
            with self.check("muster's worker dead: its own model leaves the list"):
                wait_until("gone", lambda: EMBED not in models(c), 120)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--muster", help="muster's binary; without it only FastChat's own fleet is checked")
    args.add_argument("--case", action="append", choices=["a", "b", "c", "d"], help="only this case (d holds e too); may be repeated")
    args.add_argument("--demo", type=Path, default=DEMO, help="the demo chat model's folder")
    args.add_argument("--limit", type=int, default=600, help="seconds for everything (default 600)")
    args.add_argument("--slow", action="store_true", help="also wait for two of FastChat's expiry periods (200 s)")
    args.add_argument("--keep", action="store_true", help="keep the scratch folder with the logs, and name it")
    args = args.parse_args()
    if args.muster:
        args.muster = os.path.abspath(shutil.which(args.muster) or sys.exit(f"{args.muster}: not a program"))

    def up(number, _):
        raise TimeUp(signal.Signals(number).name)
    signal.signal(signal.SIGALRM, up)
    signal.signal(signal.SIGTERM, up)
    signal.alarm(args.limit)

    begin, scratch = time.monotonic(), tempfile.mkdtemp(prefix="muster-fastchat-")
    run = Run(args, scratch)
    try:
        subprocess.run([sys.executable, HERE / "make_model.py", os.path.join(scratch, "demo-chat"), "--demo", args.demo], check=True, stdout=subprocess.DEVNULL)
        run.tokenizer = Tokenizer.from_file(os.path.join(scratch, "demo-chat", "tokenizer.json"))
        run.case_fastchat()
        if args.muster:
            for name in sorted(set(args.case or "abcd")):
                {"a": run.case_a, "b": run.case_b, "c": run.case_c, "d": run.case_de}[name]()
    except TimeUp as e:
        run.failed += 1
        print(f"FAIL {run.case}: stopped by {e}" + (f" after {args.limit} s" if str(e) == "SIGALRM" else ""))
    finally:
        signal.alarm(0)
        if args.keep:
            print("logs:", scratch)
        else:
            shutil.rmtree(scratch, ignore_errors=True)
    print(f"{run.passed} passed, {run.failed} failed, in {time.monotonic() - begin:.0f} s")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())

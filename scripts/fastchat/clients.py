"""A gateway's client in two forms with the same methods: plain HTTP, and OpenAI's own package."""

import json

import openai
import requests


def same(got, want, what="answer"):
    if got != want:
        raise AssertionError(f"{what}: {got!r}, not {want!r}")


def true(ok, why):
    if not ok:
        raise AssertionError(why)


class Reply:
    """What a test looks at, the same from either client."""

    def __init__(self, texts, reasons, usage=None, pieces=0, logprobs=None):
        self.texts, self.reasons, self.usage, self.pieces, self.logprobs = texts, reasons, usage, pieces, logprobs
        self.text, self.reason = texts[0], reasons[0]


class Plain:
    """FastChat's gateway, by plain HTTP."""

    def __init__(self, base):
        self.base = base

    def post(self, path, body, **kw):
        r = requests.post(self.base + path, json=body, timeout=60, **kw)
        if r.status_code != 200:
            raise RuntimeError(f"{path}: {r.status_code} {r.text[:300]}")
        return r

    @staticmethod
    def reply(r, text):
        r = r.json()
        return Reply([text(c) for c in r["choices"]], [c["finish_reason"] for c in r["choices"]], r["usage"], logprobs=r["choices"][0].get("logprobs"))

    def events(self, path, body):
        r, done = self.post(path, body | {"stream": True}, stream=True), False
        for line in r.iter_lines():
            if line == b"data: [DONE]":
                done = True
            elif line:
                event = json.loads(line.removeprefix(b"data: "))
                if "error_code" in event:
                    raise RuntimeError(f"error in the stream: {event}")
                yield event["choices"][0]
        if not done:
            raise RuntimeError("the stream ended without [DONE]")

    def chat(self, **body):
        return self.reply(self.post("/v1/chat/completions", body), lambda c: c["message"]["content"])

    def chat_stream(self, **body):
        text, reason, pieces = "", None, 0
        for c in self.events("/v1/chat/completions", body):
            piece = c["delta"].get("content") or ""
            text, reason, pieces = text + piece, c.get("finish_reason") or reason, pieces + bool(piece)
        return Reply([text], [reason], pieces=pieces)

    def complete(self, **body):
        return self.reply(self.post("/v1/completions", body), lambda c: c["text"])

    def complete_stream(self, **body):
        text, reason, pieces = "", None, 0
        for c in self.events("/v1/completions", body):
            text, reason, pieces = text + c["text"], c.get("finish_reason") or reason, pieces + bool(c["text"])
        return Reply([text], [reason], pieces=pieces)

    def embed(self, model, texts, **kw):
        data = self.post("/v1/embeddings", {"model": model, "input": texts} | kw).json()["data"]
        same([d["index"] for d in data], list(range(len(texts))), "indexes")
        return [d["embedding"] for d in data]

    def models(self):
        r = requests.get(self.base + "/v1/models", timeout=60)
        return [m["id"] for m in r.json()["data"]]


class OpenAI:
    """muster's gateway, by OpenAI's own client; what it does not know of (top_k ...) is not sent."""

    def __init__(self, base):
        self.client = openai.OpenAI(base_url=base + "/v1", api_key="none", timeout=60, max_retries=0)

    @staticmethod
    def reply(r, text):
        logprobs = getattr(r.choices[0], "logprobs", None)
        return Reply([text(c) for c in r.choices], [c.finish_reason for c in r.choices], json.loads(r.usage.json()), logprobs=logprobs and json.loads(logprobs.json()))

    def chat(self, **body):
        return self.reply(self.client.chat.completions.create(**body), lambda c: c.message.content)

    def chat_stream(self, **body):
        text, reason, pieces = "", None, 0
        for event in self.client.chat.completions.create(stream=True, **body):
            for c in event.choices:
                piece = c.delta.content or ""
                text, reason, pieces = text + piece, c.finish_reason or reason, pieces + bool(piece)
        return Reply([text], [reason], pieces=pieces)

    def complete(self, **body):
        return self.reply(self.client.completions.create(**body), lambda c: c.text)

    def complete_stream(self, **body):
        text, reason, pieces = "", None, 0
        for event in self.client.completions.create(stream=True, **body):
            for c in event.choices:
                text, reason, pieces = text + c.text, c.finish_reason or reason, pieces + bool(c.text)
        return Reply([text], [reason], pieces=pieces)

    def embed(self, model, texts, **kw):
        data = self.client.embeddings.create(model=model, input=texts, **kw).data
        same([d.index for d in data], list(range(len(texts))), "indexes")
        return [d.embedding for d in data]

    def models(self):
        return [m.id for m in self.client.models.list().data]

"""`/v1/chat/completions` as a stream."""

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionChunk

from muster import CHAT, Muster, eventually, user
from questions import ONNX, STORY, mixed


def chunks(client: OpenAI, question: str, **options) -> list[ChatCompletionChunk]:
    options = {"temperature": 0} | options
    return list(client.chat.completions.create(model=CHAT, messages=user(question), stream=True, **options))


def text(stream: list[ChatCompletionChunk], index: int = 0) -> str:
    choices = [choice for chunk in stream for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


def test_chunks_belong_together(client: OpenAI):
    stream = chunks(client, "What is ONNX?")
    assert text(stream) == ONNX
    assert len(stream) > 5, "the answer did not come in pieces"
    assert stream[0].choices[0].delta.role == "assistant"
    assert {chunk.object for chunk in stream} == {"chat.completion.chunk"}
    assert {chunk.model for chunk in stream} == {CHAT}
    assert len({chunk.id for chunk in stream}) == 1
    assert len({chunk.created for chunk in stream}) == 1
    assert all(chunk.usage is None for chunk in stream)
    reasons = [choice.finish_reason for chunk in stream for choice in chunk.choices]
    assert [reason for reason in reasons if reason] == ["stop"]
    assert reasons[-1] == "stop"


def test_usage_comes_last_when_asked_for(client: OpenAI):
    *stream, last = chunks(client, "What is ONNX?", stream_options={"include_usage": True})
    assert text(stream) == ONNX
    assert all(chunk.usage is None for chunk in stream)
    assert last.choices == []
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens > 0


def test_the_clients_own_helper_reads_the_stream(client: OpenAI):
    with client.chat.completions.stream(model=CHAT, messages=user("What is ONNX?"), temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert "".join(event.delta for event in events if event.type == "content.delta") == ONNX
    assert [event.content for event in events if event.type == "content.done"] == [ONNX]
    assert final.choices[0].message.content == ONNX
    assert final.choices[0].finish_reason == "stop"


def test_a_stream_says_what_a_plain_answer_says(client: OpenAI):
    for question, answer in mixed(12):
        assert text(chunks(client, question)) == answer, question


@pytest.mark.parametrize("word, language, translation", [("tree", "Spanish", "árbol"), ("cheese", "German", "Käse")])
def test_letters_of_several_bytes_arrive_whole(client: OpenAI, word: str, language: str, translation: str):
    stream = chunks(client, f"How do you say {word} in {language}?")
    assert translation in text(stream)
    assert "\ufffd" not in text(stream)


@pytest.mark.parametrize("stop", ["machine", "chine lea", "models. A"])
def test_no_piece_of_a_stop_string_is_shown(client: OpenAI, stop: str):
    stream = chunks(client, "What is ONNX?", stop=stop)
    assert text(stream) == ONNX.split(stop)[0]


def test_several_choices_share_a_stream(client: OpenAI):
    stream = chunks(client, "What is ONNX?", n=2)
    assert [text(stream, 0), text(stream, 1)] == [ONNX, ONNX]
    ends = [choice.index for chunk in stream for choice in chunk.choices if choice.finish_reason]
    assert sorted(ends) == [0, 1]


def test_logprobs_come_with_their_text(client: OpenAI):
    stream = chunks(client, "What is ONNX?", logprobs=True, top_logprobs=1)
    choices = [choice for chunk in stream for choice in chunk.choices if choice.logprobs]
    tokens = [token for choice in choices for token in choice.logprobs.content or []]
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == ONNX


def test_a_stream_that_the_client_closes_frees_its_slot(fleet: Muster, client: OpenAI):
    def cancelled() -> float:
        return fleet.metric("muster_controller_releases_total", outcome="cancelled")

    before = cancelled()
    stream = client.chat.completions.create(
        model=CHAT,
        messages=user(STORY),
        stream=True,
        max_tokens=1900,
        extra_body={"ignore_eos": True},
    )
    assert next(stream).choices
    eventually(lambda: fleet.metric("muster_controller_tickets") >= 1, "the request is in flight")
    stream.close()
    eventually(lambda: fleet.metric("muster_controller_tickets") == 0, "no request is in flight")
    eventually(lambda: fleet.metric("muster_worker_sequences_running") == 0, "no sequence runs")
    assert cancelled() == before + 1, "it was cancelled, and did not just run to its end"

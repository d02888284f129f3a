"""`/v1/completions`: text in, text out, no chat template."""

import pytest
from openai import OpenAI

from muster import CHAT

# What the model makes of a text without a conversation around it, greedily.
JAPAN, TOKYO = "The capital of Japan is", " Tokyo."
PERU, LIMA = "The capital of Peru is", " Lima."


def test_a_text_is_continued(client: OpenAI):
    completion = client.completions.create(model=CHAT, prompt=JAPAN, temperature=0)
    assert completion.id.startswith("cmpl-")
    assert completion.object == "text_completion"
    assert completion.model == CHAT
    [choice] = completion.choices
    assert (choice.index, choice.text, choice.finish_reason) == (0, TOKYO, "stop")
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


def test_a_text_is_continued_as_a_stream(client: OpenAI):
    stream = list(
        client.completions.create(
            model=CHAT, prompt=JAPAN, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    *chunks, last = stream
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == TOKYO
    assert {chunk.object for chunk in stream} == {"text_completion"}
    assert len({chunk.id for chunk in stream}) == 1
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert [reason for reason in reasons if reason] == ["stop"]
    assert last.choices == [] and last.usage.completion_tokens > 0


def test_sixteen_tokens_unless_more_are_asked_for(client: OpenAI):
    completion = client.completions.create(model=CHAT, prompt="Once upon a time", temperature=0)
    assert completion.usage.completion_tokens == 16
    assert completion.choices[0].finish_reason == "length"


def test_echo_begins_with_the_prompt(client: OpenAI):
    completion = client.completions.create(model=CHAT, prompt=JAPAN, temperature=0, echo=True)
    assert completion.choices[0].text == JAPAN + TOKYO


def test_several_prompts_are_answered_in_their_order(client: OpenAI):
    completion = client.completions.create(model=CHAT, prompt=[JAPAN, PERU], temperature=0)
    assert [(choice.index, choice.text) for choice in completion.choices] == [(0, TOKYO), (1, LIMA)]


def test_several_prompts_with_several_choices_each(client: OpenAI):
    completion = client.completions.create(model=CHAT, prompt=[JAPAN, PERU], n=2, temperature=0)
    texts = [(choice.index, choice.text) for choice in completion.choices]
    assert texts == [(0, TOKYO), (1, TOKYO), (2, LIMA), (3, LIMA)]


def test_logprobs_in_the_older_form(client: OpenAI):
    completion = client.completions.create(model=CHAT, prompt=JAPAN, temperature=0, logprobs=2)
    logprobs = completion.choices[0].logprobs
    assert "".join(logprobs.tokens) == TOKYO
    count = len(logprobs.tokens)
    assert [len(logprobs.token_logprobs), len(logprobs.top_logprobs), len(logprobs.text_offset)] == [count] * 3
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
        assert logprob <= 0
        assert top[token] == max(top.values()) == pytest.approx(logprob)

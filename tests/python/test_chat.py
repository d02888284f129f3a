"""`/v1/chat/completions` without streaming."""

import json
from pathlib import Path
from random import Random

import data
import facts
import pytest
from openai import OpenAI

from muster import CHAT, ask, user
from questions import ONNX, SKILLS, STORY, questions

TOKENIZER = Path(__file__).resolve().parents[2] / "model-worker" / "demo" / "chat" / "tokenizer.json"


@pytest.mark.parametrize("skill", SKILLS, ids=lambda skill: skill.__name__)
def test_answers_follow_the_rules_they_were_trained_on(client: OpenAI, skill):
    for question, answer in questions(skill, count=8):
        assert ask(client, question) == answer, question


def test_a_completion_is_complete(client: OpenAI):
    completion = client.chat.completions.create(model=CHAT, messages=user("What is ONNX?"), temperature=0)
    assert completion.id.startswith("chatcmpl-")
    assert completion.object == "chat.completion"
    assert completion.model == CHAT
    assert completion.created > 0
    [choice] = completion.choices
    assert (choice.index, choice.finish_reason) == (0, "stop")
    assert (choice.message.role, choice.message.content) == ("assistant", ONNX)
    usage = completion.usage
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@pytest.mark.parametrize("seed", range(6))
def test_earlier_turns_are_remembered(client: OpenAI, seed: int):
    *history, last = data.memory_conversation(Random(seed), data.SMALL)
    completion = client.chat.completions.create(model=CHAT, messages=history, temperature=0)
    assert completion.choices[0].message.content == last["content"]


@pytest.mark.parametrize("system", sorted({system for system in facts.SYSTEMS if system}))
def test_a_system_message_is_part_of_the_prompt(client: OpenAI, system: str):
    question = user("What is the capital of Peru?")
    plain = client.chat.completions.create(model=CHAT, messages=question, temperature=0)
    messages = [{"role": "system", "content": system}, *question]
    led = client.chat.completions.create(model=CHAT, messages=messages, temperature=0)
    assert led.choices[0].message.content == "The capital of Peru is Lima."
    assert led.usage.prompt_tokens > plain.usage.prompt_tokens


def test_content_may_come_in_parts(client: OpenAI):
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is the capital of Peru?"}]}]
    completion = client.chat.completions.create(model=CHAT, messages=messages, temperature=0)
    assert completion.choices[0].message.content == "The capital of Peru is Lima."


def test_fields_nobody_knows_are_ignored(client: OpenAI):
    assert ask(client, "Say OK", user="somebody", extra_body={"no_such_field": {"a": 1}}) == "OK"


def test_the_same_seed_draws_the_same_answer(client: OpenAI):
    stories = [ask(client, STORY, temperature=1, seed=seed) for seed in (1, 2, 3, 4)]
    again = [ask(client, STORY, temperature=1, seed=seed) for seed in (1, 2, 3, 4)]
    assert stories == again
    assert len(set(stories)) > 1


def test_several_choices_are_drawn_apart(client: OpenAI):
    completion = client.chat.completions.create(model=CHAT, messages=user(STORY), n=2, temperature=1, seed=7)
    assert [choice.index for choice in completion.choices] == [0, 1]
    first, second = (choice.message.content for choice in completion.choices)
    assert first != second
    # The second choice is the one that the next seed would have drawn first.
    assert second == ask(client, STORY, temperature=1, seed=8)


def test_two_greedy_choices_are_the_same(client: OpenAI):
    completion = client.chat.completions.create(model=CHAT, messages=user("What is ONNX?"), n=2, temperature=0)
    assert [choice.message.content for choice in completion.choices] == [ONNX, ONNX]


@pytest.mark.parametrize("stop", ["machine", "chine lea", ".", [" graph", "models"], ["never said"]])
def test_an_answer_ends_before_a_stop_string(client: OpenAI, stop: str | list[str]):
    completion = client.chat.completions.create(model=CHAT, messages=user("What is ONNX?"), temperature=0, stop=stop)
    strings = [stop] if isinstance(stop, str) else stop
    assert completion.choices[0].message.content == min((ONNX.split(string)[0] for string in strings), key=len)
    assert completion.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_an_answer_ends_at_its_longest_length(client: OpenAI, limit: str):
    completion = client.chat.completions.create(
        model=CHAT, messages=user("What is ONNX?"), temperature=0, **{limit: 5}
    )
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == 5
    content = completion.choices[0].message.content
    assert content and ONNX.startswith(content)


def test_logprobs_tell_how_likely_each_token_was(client: OpenAI):
    completion = client.chat.completions.create(
        model=CHAT, messages=user("What is ONNX?"), temperature=0, logprobs=True, top_logprobs=3
    )
    tokens = completion.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == ONNX
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        ranking = [rival.logprob for rival in token.top_logprobs]
        assert ranking == sorted(ranking, reverse=True)
        # Greedy: the chosen token is the likeliest.
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, token.top_logprobs[0].logprob)


def test_logprobs_without_rivals(client: OpenAI):
    completion = client.chat.completions.create(model=CHAT, messages=user("Say OK"), temperature=0, logprobs=True)
    tokens = completion.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == "OK"
    assert all(token.top_logprobs == [] for token in tokens)


def test_no_logprobs_unless_asked_for(client: OpenAI):
    completion = client.chat.completions.create(model=CHAT, messages=user("Say OK"), temperature=0)
    assert completion.choices[0].logprobs is None


def test_a_biased_token_is_banned_or_forced(client: OpenAI):
    vocabulary = json.loads(TOKENIZER.read_text())["model"]["vocab"]
    the = str(vocabulary["The"])
    question = "What is the capital of Peru?"
    assert ask(client, question).startswith("The")
    assert not ask(client, question, logit_bias={the: -100}).startswith("The")
    assert ask(client, question, logit_bias={the: 100}, max_tokens=3) == "TheTheThe"

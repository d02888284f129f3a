"""Parameters beyond OpenAI's that say which tokens are chosen, as vLLM's clients send them: in `extra_body`."""

import json
from pathlib import Path

import pytest
from openai import BadRequestError, OpenAI

from muster import CHAT, ask, user
from questions import ONNX, STORY

TOKENIZER = Path(__file__).resolve().parents[2] / "model-worker" / "demo" / "chat" / "tokenizer.json"
PERU = "What is the capital of Peru?"


@pytest.fixture(scope="module")
def vocabulary() -> dict[str, int]:
    """Every token with its id."""
    tokenizer = json.loads(TOKENIZER.read_text())
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    return tokenizer["model"]["vocab"] | added


def test_the_most_typical_token_alone_leaves_nothing_to_chance(client: OpenAI):
    options = {"temperature": 1, "max_tokens": 40}
    free = {ask(client, STORY, seed=seed, **options) for seed in range(4)}
    assert len(free) > 1
    typical = {ask(client, STORY, seed=seed, extra_body={"typical_p": 1e-6}, **options) for seed in range(4)}
    assert len(typical) == 1


def test_a_typical_p_of_one_changes_nothing(client: OpenAI):
    options = {"temperature": 1, "max_tokens": 40, "seed": 3}
    assert ask(client, STORY, extra_body={"typical_p": 1}, **options) == ask(client, STORY, **options)


def test_an_answer_has_its_least_length(client: OpenAI):
    completion = client.chat.completions.create(
        model=CHAT, messages=user("Say OK"), temperature=0, max_tokens=40, extra_body={"min_tokens": 20}
    )
    assert ask(client, "Say OK") == "OK"
    assert completion.choices[0].message.content.startswith("OK")
    assert 20 <= completion.usage.completion_tokens <= 40


def test_a_stop_token_too_does_not_come_too_early(client: OpenAI, vocabulary: dict[str, int]):
    the = vocabulary["The"]
    assert ask(client, PERU, extra_body={"stop_token_ids": [the]}) == ""
    late = ask(client, PERU, extra_body={"stop_token_ids": [the], "min_tokens": 3}, max_tokens=20)
    assert late and not late.startswith("The")


def test_an_answer_that_must_be_longer_than_it_may_is_refused(client: OpenAI):
    with pytest.raises(BadRequestError) as error:
        ask(client, "Say OK", max_tokens=5, extra_body={"min_tokens": 6})
    assert error.value.param == "min_tokens"
    assert "5" in error.value.message and "6" in error.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_only_allowed_tokens_are_chosen(client: OpenAI, vocabulary: dict[str, int], stream: bool):
    allowed = {"allowed_token_ids": [vocabulary["The"]]}
    answer = client.completions.create(
        model=CHAT, prompt="Once", temperature=1, max_tokens=4, stream=stream, extra_body=allowed
    )
    pieces = [choice.text for chunk in answer for choice in chunk.choices] if stream else [answer.choices[0].text]
    assert "".join(pieces) == "TheTheTheThe"


def test_an_end_that_is_allowed_ends_the_answer(client: OpenAI, vocabulary: dict[str, int]):
    tokens = [vocabulary["The"], vocabulary["<|im_end|>"]]
    two = client.chat.completions.create(
        model=CHAT, messages=user(PERU), n=2, temperature=1, max_tokens=500, extra_body={"allowed_token_ids": tokens}
    )
    for choice in two.choices:
        assert choice.finish_reason == "stop"
        assert choice.message.content.replace("The", "") == ""


@pytest.mark.parametrize("field", ["stop_token_ids", "allowed_token_ids", "logit_bias", "prompt"])
def test_a_token_that_does_not_exist_is_refused_with_the_size_of_the_vocabulary(
    client: OpenAI, vocabulary: dict[str, int], field: str
):
    size = max(vocabulary.values()) + 1
    value = {str(size): 1} if field == "logit_bias" else [size]
    with pytest.raises(BadRequestError) as error:
        client.completions.create(model=CHAT, prompt="Once", extra_body={field: value})
    assert error.value.param == field
    assert f"token id {size} in {field}" in error.value.message and f"has {size} tokens" in error.value.message


def test_ten_thousand_stop_strings_and_tokens_change_nothing_unless_they_come(
    client: OpenAI, vocabulary: dict[str, int]
):
    stops = [f"never {number}" for number in range(9_999)]
    tokens = [vocabulary["<|im_end|>"]] * 10_000
    assert ask(client, "What is ONNX?", stop=stops, extra_body={"stop_token_ids": tokens}) == ONNX
    assert ask(client, "What is ONNX?", stop=[*stops, "machine"]) == ONNX.split("machine")[0]


@pytest.mark.parametrize("salt", [{}, {"cache_salt": "one"}, {"cache_salt": "another"}])
def test_a_salt_changes_no_answer_and_the_cached_part_of_the_prompt_is_told(client: OpenAI, salt: dict[str, str]):
    chat = {"model": CHAT, "messages": user(PERU), "temperature": 0, "extra_body": salt}
    text = {"model": CHAT, "prompt": "The capital of Peru is", "temperature": 0, "extra_body": salt}
    usages = {"stream": True, "stream_options": {"include_usage": True}}
    whole, plain = client.chat.completions.create(**chat), client.completions.create(**text)
    assert whole.choices[0].message.content == "The capital of Peru is Lima."
    assert plain.choices[0].text == " Lima."
    *_, chat_end = client.chat.completions.create(**chat, **usages)
    *_, text_end = client.completions.create(**text, **usages)
    for usage in (whole.usage, plain.usage, chat_end.usage, text_end.usage):
        assert 0 <= usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens


@pytest.mark.parametrize(
    "field, value",
    [("typical_p", 0), ("typical_p", 1.5), ("min_tokens", -1), ("allowed_token_ids", []), ("cache_salt", "")],
)
def test_a_bad_value_is_refused_by_the_name_of_its_field(client: OpenAI, field: str, value):
    with pytest.raises(BadRequestError) as error:
        ask(client, "Hi", extra_body={field: value})
    assert error.value.param == field

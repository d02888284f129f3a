"""What requests share of a prompt, and what that changes: the time, and no answer."""

import uuid

import pytest
from openai import OpenAI
from openai.types import CompletionUsage

from muster import CHAT, user
from questions import STORY


def usage(client: OpenAI, question: str, **options) -> CompletionUsage:
    options = {"temperature": 0, "max_tokens": 8} | options
    return client.chat.completions.create(model=CHAT, messages=user(question), **options).usage


def cached(client: OpenAI, question: str, **options) -> int:
    return usage(client, question, **options).prompt_tokens_details.cached_tokens


@pytest.fixture
def fresh() -> str:
    """A question that nobody has asked before; what begins before it are the words of the template."""
    return f"{uuid.uuid4()} {uuid.uuid4()}: repeat this"


@pytest.fixture
def salt() -> str:
    """Of a tenant who has asked nothing before."""
    return str(uuid.uuid4())


def test_four_answers_to_one_prompt_count_it_once_and_are_those_of_four_seeds(client: OpenAI):
    options = {"model": CHAT, "messages": user(STORY), "temperature": 1, "max_tokens": 24}
    four = client.chat.completions.create(n=4, seed=11, **options)
    one = [client.chat.completions.create(seed=11 + index, **options) for index in range(4)]
    texts = [choice.message.content for choice in sorted(four.choices, key=lambda choice: choice.index)]
    assert texts == [completion.choices[0].message.content for completion in one]
    assert len(set(texts)) > 1, "these seeds say different things"
    assert four.usage.prompt_tokens == one[0].usage.prompt_tokens
    assert four.usage.completion_tokens == sum(completion.usage.completion_tokens for completion in one)


def test_the_second_of_two_same_prompts_finds_what_the_first_has_read(client: OpenAI, fresh: str, salt: str):
    options = {"extra_body": {"cache_salt": salt}}
    assert cached(client, fresh, **options) == 0
    again = usage(client, fresh, **options)
    assert again.prompt_tokens_details.cached_tokens == again.prompt_tokens - 1, "the last token is always read"


def test_another_salt_finds_nothing(client: OpenAI, fresh: str, salt: str):
    for name in (salt, salt + " of another"):
        assert cached(client, fresh, extra_body={"cache_salt": name}) == 0
    assert cached(client, fresh, extra_body={"cache_salt": salt}) > 0


@pytest.mark.parametrize(
    "other",
    [{"temperature": 1.5, "seed": 3}, {"top_p": 0.5, "presence_penalty": 1}, {"max_tokens": 2, "stop": "x"}, {"n": 2}],
    ids=["temperature", "penalty", "length", "answers"],
)
def test_how_tokens_are_chosen_does_not_matter_to_what_is_shared(client: OpenAI, fresh: str, salt: str, other: dict):
    options = {"extra_body": {"cache_salt": salt}}
    first = usage(client, fresh, **options)
    assert cached(client, fresh, **options, **other) == first.prompt_tokens - 1


def test_a_conversation_that_goes_on_finds_all_of_what_was_said(client: OpenAI, salt: str):
    options = {"model": CHAT, "temperature": 0, "extra_body": {"cache_salt": salt}}
    messages = user("My name is Clara.")
    first = client.chat.completions.create(messages=messages, **options)
    messages += [{"role": "assistant", "content": first.choices[0].message.content}, *user("What is my name?")]
    second = client.chat.completions.create(messages=messages, **options)
    assert second.choices[0].message.content == "Your name is Clara."
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens

"""What clients are told when something is wrong, and in which of their own exceptions."""

import re

import pytest
from openai import APIStatusError, AuthenticationError, BadRequestError, NotFoundError, Omit, OpenAI

from conftest import BODY_LIMIT, KEYS
from muster import CHAT, EMBEDDING, Muster, ask, user

TOOL = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.chat.completions.create(model="nobody", messages=user("Hi")),
        lambda client: client.chat.completions.create(model="nobody", messages=user("Hi"), stream=True),
        lambda client: client.completions.create(model="nobody", prompt="Hi"),
        lambda client: client.embeddings.create(model="nobody", input="Hi"),
    ],
    ids=["chat", "stream", "completion", "embedding"],
)
def test_a_model_that_nobody_serves_is_not_found(client: OpenAI, call):
    with pytest.raises(NotFoundError) as error:
        call(client)
    assert (error.value.code, error.value.type) == ("model_not_found", "invalid_request_error")
    assert "nobody" in error.value.message


@pytest.mark.parametrize(
    "field, value",
    [("temperature", "hot"), ("temperature", 3.0), ("top_p", 2), ("n", 0), ("max_tokens", -1), ("top_logprobs", 99)],
)
def test_a_bad_value_is_refused_by_the_name_of_its_field(client: OpenAI, field: str, value):
    with pytest.raises(BadRequestError) as error:
        client.chat.completions.create(model=CHAT, messages=user("Hi"), logprobs=True, extra_body={field: value})
    assert (error.value.param, error.value.type) == (field, "invalid_request_error")
    assert error.value.request_id


def test_no_messages_are_refused(client: OpenAI):
    with pytest.raises(BadRequestError) as error:
        client.chat.completions.create(model=CHAT, messages=[])
    assert error.value.param == "messages"


def test_what_is_known_but_not_supported_is_refused_by_its_name(client: OpenAI):
    with pytest.raises(BadRequestError) as error:
        client.chat.completions.create(model=CHAT, messages=user("Hi"), tools=[TOOL])
    assert error.value.param == "tools"
    assert "tools" in error.value.message


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(client: OpenAI):
    with pytest.raises(BadRequestError) as error:
        ask(client, "one two three " * 1000)
    assert error.value.code == "context_length_exceeded"
    numbers = [int(number) for number in re.findall(r"\d+", error.value.message)]
    assert 2048 in numbers
    assert any(number > 3000 for number in numbers)


def test_a_model_is_used_only_for_what_it_can_do(client: OpenAI):
    with pytest.raises(BadRequestError, match=EMBEDDING):
        client.chat.completions.create(model=EMBEDDING, messages=user("Hi"))
    with pytest.raises(BadRequestError, match=CHAT):
        client.embeddings.create(model=CHAT, input="Hi")


def test_too_many_dimensions_are_refused(client: OpenAI):
    with pytest.raises(BadRequestError) as error:
        client.embeddings.create(model=EMBEDDING, input="Hi", dimensions=129)
    assert error.value.param == "dimensions"


def test_an_unknown_path_is_not_found(client: OpenAI):
    with pytest.raises(NotFoundError) as error:
        client.get("/no/such/path", cast_to=object)
    assert error.value.type == "invalid_request_error"


def test_another_method_is_not_allowed(client: OpenAI):
    with pytest.raises(APIStatusError) as error:
        client.get("/chat/completions", cast_to=object)
    assert error.value.status_code == 405
    assert error.value.type == "invalid_request_error"


def test_a_body_beyond_the_limit_is_refused(guarded: Muster):
    with guarded.client(api_key=KEYS[0]) as client, pytest.raises(APIStatusError) as error:
        ask(client, "x" * BODY_LIMIT)
    assert error.value.status_code == 413
    assert error.value.type == "invalid_request_error"


@pytest.mark.parametrize("key", ["wrong-key", KEYS[0] + "x"])
def test_a_wrong_key_is_refused(guarded: Muster, key: str):
    with guarded.client(api_key=key) as client, pytest.raises(AuthenticationError) as error:
        ask(client, "Say OK")
    assert error.value.code == "invalid_api_key"
    assert key not in error.value.message


def test_a_missing_key_is_refused(guarded: Muster):
    with guarded.client() as client, pytest.raises(AuthenticationError) as error:
        client.models.list(extra_headers={"Authorization": Omit()})
    assert error.value.code == "invalid_api_key"


@pytest.mark.parametrize("key", KEYS)
def test_every_key_opens_the_door(guarded: Muster, key: str):
    with guarded.client(api_key=key) as client:
        assert ask(client, "Say OK") == "OK"
        assert client.models.list().data

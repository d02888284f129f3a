"""`/v1/models`."""

import pytest
from openai import NotFoundError, OpenAI

from muster import CHAT, EMBEDDING


def test_both_demo_models_are_listed(client: OpenAI):
    models = {model.id: model for model in client.models.list()}
    assert set(models) == {CHAT, EMBEDDING}
    assert all(model.object == "model" and model.created > 0 and model.owned_by for model in models.values())


def test_a_model_is_retrieved_by_its_name(client: OpenAI):
    assert client.models.retrieve(CHAT).id == CHAT


def test_an_unknown_model_is_not_found(client: OpenAI):
    with pytest.raises(NotFoundError) as error:
        client.models.retrieve("no-such-model")
    assert error.value.code == "model_not_found"
    assert "no-such-model" in error.value.message

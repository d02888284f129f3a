"""`/v1/embeddings`."""

import math

import pytest
from openai import OpenAI

from muster import EMBEDDING

WIDTH = 128


def embed(client: OpenAI, *texts: str, **options) -> list[list[float]]:
    response = client.embeddings.create(model=EMBEDDING, input=list(texts), **options)
    assert [item.index for item in response.data] == list(range(len(texts)))
    return [item.embedding for item in response.data]


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b)) / math.hypot(*a) / math.hypot(*b)


def test_a_text_becomes_a_unit_vector(client: OpenAI):
    response = client.embeddings.create(model=EMBEDDING, input="a cat sits on the mat")
    [item] = response.data
    assert (response.object, item.object, response.model) == ("list", "embedding", EMBEDDING)
    assert len(item.embedding) == WIDTH
    assert math.hypot(*item.embedding) == pytest.approx(1, abs=1e-5)
    assert response.usage.prompt_tokens == response.usage.total_tokens > 0


def test_both_encodings_hold_the_same_numbers(client: OpenAI):
    text = "muster serves ONNX models"
    [packed] = embed(client, text)  # the client asks for base64 by itself
    [plain] = embed(client, text, encoding_format="float")
    assert packed == pytest.approx(plain, abs=1e-6)


def test_base64_can_be_asked_for(client: OpenAI):
    response = client.embeddings.create(model=EMBEDDING, input="a cat", encoding_format="base64")
    assert isinstance(response.data[0].embedding, str)


def test_fewer_dimensions_are_the_first_ones_normalised_again(client: OpenAI):
    text = "a cat sits on the mat"
    [whole], [short] = embed(client, text), embed(client, text, dimensions=32)
    length = math.hypot(*whole[:32])
    assert short == pytest.approx([number / length for number in whole[:32]], abs=1e-5)


def test_a_list_gives_what_each_text_gives_alone(client: OpenAI):
    texts = ["short", "a rather longer text about the weather in the mountains " * 5, "Käse und Brot", "short"]
    together = embed(client, *texts)
    alone = [embed(client, text)[0] for text in texts]
    for a, b in zip(together, alone):
        assert a == pytest.approx(b, abs=1e-5)
    assert together[0] == together[3]


@pytest.mark.parametrize(
    "text, other, similarity",
    [
        ("a cat sits on the mat", "a kitten rests on a rug", 0.78),
        ("a cat sits on the mat", "stock markets fell sharply", -0.03),
        ("Paris is the capital of France", "the French capital city", 0.75),
        ("Paris is the capital of France", "a recipe for onion soup", 0.09),
    ],
)
def test_texts_are_near_when_their_meaning_is(client: OpenAI, text: str, other: str, similarity: float):
    assert cosine(*embed(client, text, other)) == pytest.approx(similarity, abs=0.01)

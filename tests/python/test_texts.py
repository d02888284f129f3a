"""Rerank, classify, moderations and tokens: models that judge texts, and what their clients are told when they err."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from conftest import run
from muster import CHAT, EMBEDDING, Muster

MODELS = Path(__file__).parent.parent / "models"
RERANKER, CLASSIFIER, MODERATOR = "text-cross-encoder", "text-classifier", "text-moderator"
ENTITIES, SPARSE, SENTENCE = "text-entities", "text-sparse", "text-sentence"
ALL = (RERANKER, CLASSIFIER, MODERATOR, ENTITIES, SPARSE, SENTENCE)
NEAR = 1e-4


@pytest.fixture(scope="session")
def judges(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """A client of a fleet that serves a small model of each kind."""
    flags = [flag for name in ALL for flag in ("--model", f"{name}={MODELS / name}")]
    for fleet in run(Muster(binary, tmp_path_factory.mktemp("judges") / "stderr", *flags)):
        with fleet.client() as client:
            yield client


def reference(model: str) -> dict:
    """What the libraries that made a model say of it."""
    return json.loads((MODELS / model / "reference.json").read_text())


def post(client: OpenAI, path: str, **body) -> dict:
    return client.post(path, body=body, cast_to=dict)


def test_models_tell_what_they_can_do(judges: OpenAI):
    kinds = {model.id: model.kind for model in judges.models.list()}
    assert kinds == {
        RERANKER: "rerank",
        CLASSIFIER: "classify",
        MODERATOR: "moderate",
        ENTITIES: "entities",
        SPARSE: "sparse_embed",
        SENTENCE: "embed",
    }
    assert judges.models.retrieve(RERANKER).endpoints == ["/v1/rerank", "/tokenize", "/detokenize"]


def test_documents_are_ranked_by_their_scores(judges: OpenAI):
    query = "Where is the cat?"
    items = [item for item in reference(RERANKER)["items"] if item["query"] == query]
    documents = [item["document"] for item in items]
    answer = post(judges, "/rerank", model=RERANKER, query=query, documents=documents, return_documents=True)
    results = answer["results"]
    assert [result["relevance_score"] for result in results] == sorted(
        (result["relevance_score"] for result in results), reverse=True
    )
    assert [result["document"]["text"] for result in results] == [documents[result["index"]] for result in results]
    assert all(0 <= result["relevance_score"] <= 1 for result in results)
    assert answer["usage"]["total_tokens"] == answer["meta"]["tokens"]["input_tokens"]
    assert answer["usage"]["total_tokens"] == sum(len(item["tokens"]) for item in items)
    raw = post(judges, "/rerank", model=RERANKER, query=query, documents=documents, raw_scores=True)
    for result in raw["results"]:
        assert result["relevance_score"] == pytest.approx(items[result["index"]]["raw"], abs=NEAR)
    best = post(judges, "/rerank", model=RERANKER, query=query, documents=documents, top_n=1)
    assert [result["index"] for result in best["results"]] == [results[0]["index"]]


def test_texts_get_the_class_that_their_scores_say(judges: OpenAI):
    known = reference(CLASSIFIER)
    items = known["items"][:5]
    answer = post(judges, "/classify", model=CLASSIFIER, input=[item["text"] for item in items])
    assert answer["labels"] == known["labels"] and not answer["multi_label"]
    for item, got in zip(items, answer["data"], strict=True):
        assert got["probs"] == pytest.approx(item["scores"], abs=NEAR)
        assert got["label"] == known["labels"][item["scores"].index(max(item["scores"]))]
        assert got["num_classes"] == len(known["labels"])


def test_a_text_is_flagged_by_the_categories_that_it_is_of(judges: OpenAI):
    known = reference(MODERATOR)
    items = known["items"][:4]
    response = judges.moderations.create(input=[item["text"] for item in items])  # the only model is taken
    assert response.model == MODERATOR and response.id.startswith("modr-")
    for item, result in zip(items, response.results, strict=True):
        scores = dict(zip(known["labels"], item["scores"], strict=True))
        assert by_category(result.category_scores) == pytest.approx(scores, abs=NEAR)
        flags = by_category(result.categories)
        assert flags == {label: score >= 0.5 for label, score in scores.items()}
        assert result.flagged == any(flags.values())
        assert set(by_category(result.category_applied_input_types)) == set(scores)


def by_category(values) -> dict:
    """What came over the wire: the client knows OpenAI's categories, and others under their own names."""
    return values.model_dump(by_alias=True, exclude_unset=True)


def test_parts_of_one_input_have_one_result(judges: OpenAI):
    known = reference(MODERATOR)
    items = known["items"][:2]
    parts = [{"type": "text", "text": item["text"]} for item in items]
    [result] = judges.moderations.create(model=MODERATOR, input=parts).results
    worst = [max(scores) for scores in zip(*(item["scores"] for item in items), strict=True)]
    scores = dict(zip(known["labels"], worst, strict=True))
    assert by_category(result.category_scores) == pytest.approx(scores, abs=NEAR)
    with pytest.raises(BadRequestError, match="image_url") as error:
        image = {"type": "image_url", "image_url": {"url": "http://localhost/x.png"}}
        judges.moderations.create(model=MODERATOR, input=[*parts, image])
    assert error.value.param == "input[2]"


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_entities_stand_where_they_were_found(judges: OpenAI, strategy: str):
    items = reference(ENTITIES)["items"][:3]
    texts = [item["text"] for item in items]
    answer = post(judges, "/classify", model=ENTITIES, input=texts, aggregation_strategy=strategy)
    for item, got in zip(items, answer["data"], strict=True):
        found, expected = got["entities"], item[strategy]
        assert [(entity["label"], entity["start"], entity["end"]) for entity in found] == [
            (entity["label"], entity["start"], entity["end"]) for entity in expected
        ]
        assert [entity["score"] for entity in found] == pytest.approx([e["score"] for e in expected], abs=NEAR)
        assert all(entity["text"] == item["text"][entity["start"] : entity["end"]] for entity in found)


def test_sparse_vectors_have_places_and_numbers(judges: OpenAI):
    item = reference(SPARSE)["items"][0]
    response = judges.embeddings.create(model=SPARSE, input=item["text"], encoding_format="float")
    [got] = response.data
    assert got.object == "sparse_embedding"
    assert got.indices == item["indices"]
    assert got.values == pytest.approx(item["values"], abs=1e-3)
    with pytest.raises(BadRequestError, match="float") as error:
        judges.embeddings.create(model=SPARSE, input="hi")  # the client asks for base64 by itself
    assert error.value.param == "encoding_format"


def test_a_prompt_is_named_by_its_use(judges: OpenAI):
    def embed(text: str, **more) -> list[float]:
        return judges.embeddings.create(model=SENTENCE, input=text, extra_body=more).data[0].embedding

    plain, query = embed("hello"), embed("hello", input_type="query")
    assert plain == embed("hello", input_type="passage") == embed("hello", prompt_name="document")
    assert query == embed("hello", prompt_name="query") != plain
    with pytest.raises(BadRequestError) as error:
        embed("hello", input_type="clustering")
    assert error.value.param == "input_type"


@pytest.mark.parametrize("truncate, is_cut", [(None, False), (False, False), ("NONE", False), (True, True), ("END", True)])
def test_a_long_text_is_cut_only_for_those_who_ask(judges: OpenAI, truncate, is_cut: bool):
    body = {"model": CLASSIFIER, "input": "hello " * 500, "truncate": truncate}
    if is_cut:
        assert post(judges, "/classify", **body)["usage"]["total_tokens"] == 64
        return
    with pytest.raises(BadRequestError) as error:
        post(judges, "/classify", **body)
    assert error.value.code == "context_length_exceeded"


def test_tokens_lead_back_to_their_text(judges: OpenAI):
    item = reference(RERANKER)["items"][0]
    answer = post(judges, "/tokenize", model=RERANKER, prompt=item["query"], return_token_strs=True)
    assert item["tokens"][: answer["count"]] == answer["tokens"]
    assert len(answer["token_strs"]) == answer["count"] and answer["max_model_len"] == 64
    bare = post(judges, "/tokenize", model=RERANKER, prompt=item["query"], add_special_tokens=False)
    assert bare["tokens"] == answer["tokens"][1:-1]
    text = post(judges, "/detokenize", model=RERANKER, tokens=bare["tokens"])["prompt"]
    assert text.lower().replace(" ", "") == item["query"].lower().replace(" ", "")


def test_a_conversation_has_the_tokens_that_it_is_answered_with(client: OpenAI):
    messages = [{"role": "user", "content": "Say OK"}]
    tokens = post(client, "/tokenize", model=CHAT, messages=messages)
    usage = client.chat.completions.create(model=CHAT, messages=messages, max_tokens=1).usage
    assert tokens["count"] == usage.prompt_tokens
    without = post(client, "/tokenize", model=CHAT, messages=messages, add_generation_prompt=False)
    assert without["tokens"] == tokens["tokens"][: without["count"]] and without["count"] < tokens["count"]


def test_a_fleet_without_a_moderation_model_says_so(client: OpenAI):
    with pytest.raises(NotFoundError) as error:
        client.moderations.create(input="hi")
    assert (error.value.code, error.value.param) == ("model_not_found", "model")
    with pytest.raises(NotFoundError):
        client.moderations.create(input="hi", model="omni-moderation-latest")


@pytest.mark.parametrize("model, right", [(CHAT, "/v1/chat/completions"), (EMBEDDING, "/v1/embeddings")])
@pytest.mark.parametrize(
    "path, body",
    [
        ("/moderations", {"input": "hi"}),
        ("/classify", {"input": "hi"}),
        ("/rerank", {"query": "q", "documents": ["hi"]}),
    ],
)
def test_who_asks_at_the_wrong_path_hears_the_right_one(client: OpenAI, model: str, right: str, path: str, body: dict):
    with pytest.raises(BadRequestError, match=right) as error:
        post(client, path, model=model, **body)
    assert error.value.param == "model" and model in error.value.message


@pytest.mark.parametrize(
    "model, path, body, param",
    [
        (RERANKER, "/rerank", {"query": "q", "documents": []}, "documents"),
        (RERANKER, "/rerank", {"query": "q", "documents": ["a", ""]}, "documents[1]"),
        (RERANKER, "/rerank", {"query": "", "documents": ["a"]}, "query"),
        (RERANKER, "/rerank", {"query": "q", "documents": ["a"], "max_tokens_per_doc": 9}, "max_tokens_per_doc"),
        (CLASSIFIER, "/classify", {"input": ["a"] * 100_000}, "input"),
        (CLASSIFIER, "/classify", {"input": "hi", "truncate": "START"}, "truncate"),
        (ENTITIES, "/classify", {"input": "hi", "aggregation": "mean"}, "aggregation"),
        (ENTITIES, "/classify", {"input": "hi", "raw_scores": True}, "raw_scores"),
        (MODERATOR, "/moderations", {"input": ["a", ""]}, "input[1]"),
        (SENTENCE, "/embeddings", {"input": ["a"] * 100_000}, "input"),
        (SPARSE, "/embeddings", {"input": "hi", "dimensions": 8}, "dimensions"),
        (CLASSIFIER, "/moderations", {"input": "hi"}, "model"),
        (MODERATOR, "/rerank", {"query": "q", "documents": ["a"]}, "model"),
    ],
)
def test_what_is_wrong_is_named(judges: OpenAI, model: str, path: str, body: dict, param: str):
    with pytest.raises(BadRequestError) as error:
        post(judges, path, model=model, **body)
    assert (error.value.param, error.value.type) == (param, "invalid_request_error")


def test_a_token_that_the_vocabulary_lacks_is_named(judges: OpenAI):
    with pytest.raises(BadRequestError, match="100000"):
        post(judges, "/detokenize", model=RERANKER, tokens=[5, 100_000])
    with pytest.raises(BadRequestError, match="100000"):
        post(judges, "/classify", model=CLASSIFIER, input=[[5, 100_000]])

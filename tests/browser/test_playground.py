"""The playground of the gateway, with the models in the binary."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from conftest import Fleet, Visit, worker_arguments
from processes import CHAT, EMBEDDING, Process, eventually

DEMO = Path(__file__).parents[2] / "model-worker" / "demo" / "embedding"
QUESTION = "What is the capital of France?"
# Bytes each second: slow enough to stop an answer in its midst.
SLOW = 800


def ask(page: Page, question: str) -> None:
    page.get_by_label("Message").fill(question)
    page.get_by_label("Message").press("Enter")


def test_a_model_answers_token_by_token_and_its_numbers_are_shown(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.gateway.url)
    expect(page.locator("#chat-model")).to_have_value(CHAT)
    page.get_by_label("Temperature").fill("0")
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, QUESTION)
    body = asked.value.post_data_json
    assert (body["stream"], body["temperature"], body["max_tokens"]) == (True, 0, 256)
    answer = page.locator('.message[data-role="assistant"]').last
    expect(answer.locator(".numbers")).to_contain_text("first token after")
    expect(answer.locator(".numbers")).to_contain_text("tokens/s")
    expected = fleet.gateway.post("/v1/chat/completions", {**body, "stream": False, "stream_options": None})
    expect(answer.locator(".message-text")).to_have_text(expected["choices"][0]["message"]["content"])

    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "And of Italy?")
    roles = [message["role"] for message in asked.value.post_data_json["messages"]]
    assert roles == ["user", "assistant", "user"], "the conversation goes along"
    expect(page.locator(".message .numbers")).to_have_count(4)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".message")).to_have_count(0)


def test_an_answer_can_be_stopped(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.gateway.url)
    expect(page.locator("#chat-model")).to_have_value(CHAT)
    network = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": SLOW, "uploadThroughput": -1}
    network.send("Network.enable")
    network.send("Network.emulateNetworkConditions", slow)
    page.get_by_label("Temperature").fill("0")
    ask(page, QUESTION)
    answer = page.locator('.message[data-role="assistant"]').last
    expect(answer.locator(".message-text")).not_to_have_text("")
    page.get_by_role("button", name="Stop").click()
    expect(answer.locator(".numbers")).to_have_text("stopped")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    body = {"model": CHAT, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    whole = fleet.gateway.post("/v1/chat/completions", body)["choices"][0]["message"]["content"]
    part = answer.locator(".message-text").inner_text()
    assert whole.startswith(part) and len(part) < len(whole)


@pytest.mark.complaints("400 (Bad Request)")
def test_an_error_is_shown_as_the_api_tells_it(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.gateway.url)
    expect(page.locator("#chat-model")).to_have_value(CHAT)
    page.get_by_label("Tokens at most").fill("100000")
    with page.expect_response("**/v1/chat/completions") as answered:
        ask(page, QUESTION)
    assert answered.value.status == 400
    expect(page.locator(".message .error").last).to_have_text(answered.value.json()["error"]["message"])
    page.get_by_label("Tokens at most").fill("64")
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, QUESTION)
    assert len(asked.value.post_data_json["messages"]) == 1, "what failed is not asked again"
    expect(page.locator(".message .numbers").last).to_contain_text("first token after")


def test_texts_are_compared_by_their_vectors(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.gateway.url)
    page.get_by_role("tab", name="Embeddings").click()
    page.get_by_role("button", name="Add a text").click()
    page.get_by_label("Text 4", exact=True).fill("A cat sleeps on the sofa.")
    page.get_by_role("button", name="Compare").click()
    cells = page.locator("#embed-matrix td")
    expect(cells).to_have_count(16)
    shown = [float(text) for text in cells.all_inner_texts()]
    texts = page.locator("#embed-texts input").evaluate_all("inputs => inputs.map(input => input.value)")
    vectors = [item["embedding"] for item in fleet.gateway.post("/v1/embeddings", {"model": EMBEDDING, "input": texts})["data"]]
    dot = lambda a, b: sum(x * y for x, y in zip(a, b, strict=True))
    expected = [dot(a, b) / (dot(a, a) * dot(b, b)) ** 0.5 for a in vectors for b in vectors]
    assert shown == pytest.approx(expected, abs=0.0051)
    assert shown[3] == shown[0] == 1, "the same text has the same vector"


def test_the_same_request_is_told_for_a_terminal(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.gateway.url)
    expect(page.locator("#chat-model")).to_have_value(CHAT)
    page.get_by_label("Message").fill("it's me")
    page.get_by_role("button", name="As curl").click()
    command = page.locator("#chat-curl-view code")
    expect(command).to_contain_text(f"curl -N '{fleet.gateway.url}/v1/chat/completions'")
    expect(command).to_contain_text("it'\\''s me")


@pytest.mark.complaints("401 (Unauthorized)")
def test_a_key_is_asked_for_and_only_tabs_with_a_model_are_open(
    start: Callable[..., Process], fleet: Fleet, visit: Visit
) -> None:
    controller = start("controller", "controller")
    gateway = start("gateway", "gateway", "--controller-address", controller.url, "--api-key", "the-key")
    page = visit(gateway.url)
    dialog = page.get_by_role("dialog", name="This gateway wants a key")
    expect(dialog).to_be_visible()
    page.get_by_label("API key").fill("another")
    page.keyboard.press("Enter")
    expect(page.locator("#key-reason")).to_have_text("the API key is wrong")
    page.get_by_label("API key").fill("the-key")
    page.keyboard.press("Enter")
    expect(page.locator("#notice")).to_contain_text("No worker serves a model yet.")
    expect(page.get_by_role("tab", name="Chat")).to_be_disabled()

    model = f"{EMBEDDING}-alone={DEMO}"
    start("worker", *worker_arguments("only", controller.url), "--model", model)
    eventually(lambda: gateway.get("/v1/models", "the-key")["data"], "the gateway knows the model")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("tab", name="Embeddings")).to_be_enabled()
    expect(page.get_by_role("tab", name="Embeddings")).to_have_attribute("aria-selected", "true")
    expect(page.get_by_role("tab", name="Chat")).to_be_disabled()
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#embed-matrix td")).to_have_count(9)

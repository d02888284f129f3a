"""What somebody does at a page stays as it was while the fleet changes: the focus, the order of rows, what is typed."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from conftest import Fleet, Visit
from crowd import MODEL, crowd
from pages import row, shown_workers
from processes import CHAT, Process, eventually

NAMES = ["a", "b", "c"]
# Bytes each second: slow enough to do something while an answer comes.
SLOW = 800


@pytest.fixture
def controller(start: Callable[..., Process]) -> Process:
    return start("controller", "controller", "--heartbeat", "60s")


def focused(page: Page) -> str | None:
    return page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.dataset.node")


def drain(controller: Process, page: Page, name: str) -> None:
    controller.post("/drain", {"id": name})
    expect(page.locator(f'#picture [data-node="{name}"]')).to_contain_text("draining")


def test_the_focus_stays_when_a_row_before_it_goes(controller: Process, visit: Visit) -> None:
    with crowd(controller, NAMES):
        page = visit(controller.url)
        page.locator("#chips").get_by_role("button", name="ready").click()
        expect(row(page, "c")).to_be_visible()
        page.get_by_role("button", name="Drain c").focus()
        drain(controller, page, "a")
        expect(row(page, "a")).to_have_count(0)
        assert focused(page) == "Drain c"


def test_the_focus_stays_when_another_node_of_the_picture_goes_last(controller: Process, visit: Visit) -> None:
    with crowd(controller, NAMES):
        page = visit(controller.url)
        workers = page.locator("#picture .worker")
        expect(workers).to_have_count(3)
        page.locator('#picture [data-node="b"]').focus()
        controller.post("/deregister", {"id": "a", "incarnation": 1})
        expect(workers.last).to_have_attribute("data-node", "a")
        expect(page.locator("#workers-count")).to_have_text("2 workers, 1 gone")
        assert focused(page) == "b"


def test_rows_keep_their_order_under_the_pointer_and_around_the_focus(controller: Process, visit: Visit) -> None:
    with crowd(controller, NAMES):
        page = visit(controller.url)
        page.get_by_role("button", name="In flight").click()
        expect(row(page, "a")).to_be_visible()
        for name in ("a", "b"):
            drain(controller, page, name)
        row(page, "b").hover()
        assert controller.dispatch(MODEL) == "c"
        expect(row(page, "c").locator(".queue")).to_have_text("1 of 8")
        assert list(shown_workers(page)) == NAMES, "no row moves under the pointer"
        row(page, "b").locator("[data-node]").focus()
        page.mouse.move(0, 0)
        assert controller.dispatch(MODEL) == "c"
        expect(row(page, "c").locator(".queue")).to_have_text("2 of 8")
        assert list(shown_workers(page)) == NAMES, "nor around the focus"
        page.locator("#filter").focus()
        eventually(lambda: list(shown_workers(page)) == ["c", "a", "b"], "the rows are sorted again")


def slowly(page: Page) -> None:
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    slow = {"offline": False, "latency": 0, "downloadThroughput": SLOW, "uploadThroughput": -1}
    network.send("Network.emulateNetworkConditions", slow)


def test_whoever_types_on_during_an_answer_does_not_stop_it(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.gateway.url)
    expect(page.locator("#chat-model")).to_have_value(CHAT)
    slowly(page)
    message = page.get_by_label("Message")
    message.fill("What is the capital of France?")
    message.press("Enter")
    answer = page.locator('.message[data-role="assistant"]').last
    expect(answer.locator(".message-text")).not_to_have_text("")
    page.keyboard.type("and of Italy?")
    expect(message).to_have_value("and of Italy?")
    expect(answer).to_have_attribute("data-busy", "")
    page.keyboard.press("Escape")
    expect(answer.locator(".numbers")).to_have_text("stopped")
    expect(message).to_have_value("and of Italy?")
    expect(message).to_be_focused()


def test_the_focus_goes_from_send_to_stop_and_back(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.gateway.url)
    expect(page.locator("#chat-model")).to_have_value(CHAT)
    slowly(page)
    page.get_by_label("Message").fill("What is the capital of France?")
    page.get_by_role("button", name="Send").press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Send")).to_be_focused()


def test_the_conversation_follows_however_long_the_question(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.gateway.url, height=600)
    expect(page.locator("#chat-model")).to_have_value(CHAT)
    page.get_by_label("Message").fill("\n".join(["What is", "the capital", "of France?", *"." * 30]))
    page.get_by_label("Message").press("Enter")
    expect(page.locator(".message .numbers").last).to_contain_text("first token after")
    below = "list => list.scrollHeight - list.scrollTop - list.clientHeight"
    assert page.locator(".message-text").first.evaluate("text => text.clientHeight") > 300
    assert page.locator("#chat-messages").evaluate(below) < 2


def test_a_page_with_models_of_other_kinds_only_says_so(start: Callable[..., Process], visit: Visit) -> None:
    controller = start("controller", "controller")
    gateway = start("gateway", "gateway", "--controller-address", controller.url)
    page = visit(gateway.url)
    expect(page.locator("#notice")).to_contain_text("No worker serves a model yet.")
    models = Path(__file__).parents[1] / "models"
    worker = ("worker", "--worker-id", "only", "--controller-address", controller.url, "--threads", "1")
    start("worker", *worker, "--model", f"cls={models / 'text-classifier'}")
    expect(page.locator("#notice")).to_contain_text("None of these models chats or embeds: cls.")
    expect(page.get_by_role("tab", name="Chat")).to_be_disabled()

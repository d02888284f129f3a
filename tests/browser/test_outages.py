"""A controller that goes away, and one that wants a key."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from conftest import Visit, controller_arguments, worker_arguments
from crowd import crowd
from pages import row, shown_workers, told_workers
from processes import Process, eventually

UNREACHABLE = ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE")
TOKEN, ADMIN = "fleet-token-of-this-test", "admin-key-of-this-test"


@pytest.mark.complaints(*UNREACHABLE)
def test_a_page_without_its_controller_says_so_and_recovers_by_itself(start: Callable[..., Process], visit: Visit) -> None:
    controller = start("first", *controller_arguments())
    start("worker", *worker_arguments("alpha", controller.url))
    page = visit(controller.url)
    expect(row(page, "alpha")).to_contain_text("ready")
    expect(page.locator("#pulse")).to_contain_text("live")

    controller.kill()
    expect(page.locator("#banner")).to_contain_text("No contact with the controller since")
    expect(page.locator("#pulse")).to_contain_text("no contact")
    expect(row(page, "alpha")).to_be_visible()  # as it was last known
    assert "grayscale" in page.evaluate("getComputedStyle(document.querySelector('main')).filter")

    again = start("second", *controller_arguments(), port=controller.port)
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.locator("#pulse")).to_contain_text("live")
    eventually(lambda: "alpha" in again.workers(), "the worker registers again")
    eventually(lambda: shown_workers(page) == told_workers(again), "the page shows the other run of the controller")
    page.locator("#workers [data-worker-action]").click()
    page.locator("#confirm-button").click()
    eventually(lambda: again.workers()["alpha"]["state"] == "draining", "its buttons work")


@pytest.mark.complaints("401 (Unauthorized)")
def test_a_key_is_asked_for_and_kept_in_this_tab_only(start: Callable[..., Process], visit: Visit) -> None:
    controller = start("guarded", "controller", "--heartbeat", "60s", "--fleet-token", TOKEN, "--admin-key", ADMIN)
    with crowd(controller, ["guarded-worker"], TOKEN):
        page = visit(controller.url)
        dialog = page.get_by_role("dialog", name="This controller wants a key")
        expect(dialog).to_be_visible()
        assert page.locator("#workers [data-worker]").count() == 0
        give = lambda key: (page.get_by_label("Fleet token or admin key").fill(key), page.keyboard.press("Enter"))
        give("not-the-key")
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#banner")).to_contain_text("This controller wants a key.")
        page.get_by_role("button", name="Give a key").click()
        give(TOKEN)
        expect(row(page, "guarded-worker")).to_be_visible()
        expect(page.locator("#banner")).to_be_hidden()
        stored = page.evaluate("[Object.values(sessionStorage), Object.values(localStorage), document.cookie]")
        assert stored == [[TOKEN], [], ""]
        page.reload()
        expect(row(page, "guarded-worker")).to_be_visible()

        page.locator("#workers [data-worker-action]").click()
        page.locator("#confirm-button").click()
        expect(page.get_by_role("dialog", name="Drain guarded-worker: a key is wanted")).to_be_visible()
        expect(page.locator("#key-reason")).to_contain_text("the fleet token is not enough")
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        expect(page.locator("#said")).to_contain_text("Could not drain guarded-worker: no key was given")
        assert controller.workers(TOKEN)["guarded-worker"]["state"] == "ready"
        page.locator("#workers [data-worker-action]").click()
        page.locator("#confirm-button").click()
        page.get_by_label("Admin key", exact=True).fill(ADMIN)
        page.keyboard.press("Enter")
        eventually(lambda: controller.workers(TOKEN)["guarded-worker"]["state"] == "draining", "the admin may")

        page.get_by_role("button", name="Forget key").click()
        assert page.evaluate("sessionStorage.length") == 0
        expect(page.locator("#banner")).to_contain_text("This controller wants a key.")
        expect(dialog).to_be_hidden()


@pytest.mark.complaints("401 (Unauthorized)")
def test_a_key_that_is_not_taken_leaves_the_one_before_it(start: Callable[..., Process], visit: Visit) -> None:
    controller = start("guarded", "controller", "--heartbeat", "60s", "--fleet-token", TOKEN, "--admin-key", ADMIN)
    with crowd(controller, ["guarded-worker"], TOKEN):
        page = visit(controller.url)
        page.get_by_label("Fleet token or admin key").fill("“quoted”")
        page.keyboard.press("Enter")
        assert not page.locator("#key-input").evaluate("input => input.validity.valid"), "no header takes it"
        page.get_by_label("Fleet token or admin key").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(row(page, "guarded-worker")).to_be_visible()

        page.locator("#workers [data-worker-action]").click()
        page.locator("#confirm-button").click()
        dialog = page.get_by_role("dialog", name="Drain guarded-worker: a key is wanted")
        page.get_by_label("Admin key", exact=True).fill("not-the-key")
        with page.expect_response("**/drain"):
            page.keyboard.press("Enter")
        expect(dialog).to_be_visible()
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        expect(page.locator("#said")).to_contain_text("no key was given")
        assert page.evaluate("Object.values(sessionStorage)") == [TOKEN]
        page.reload()
        expect(row(page, "guarded-worker")).to_be_visible()


def test_a_controller_that_hangs_is_noticed_and_tried_again_at_once_when_asked(
    start: Callable[..., Process], visit: Visit
) -> None:
    controller = start("hanging", *controller_arguments())
    page = visit(controller.url)
    expect(page.locator("#pulse")).to_contain_text("live")
    controller.process.send_signal(signal.SIGSTOP)
    try:
        expect(page.locator("#banner")).to_contain_text("nothing has come for 6 s")
        with page.expect_request("**/events"):
            pass
        with page.expect_request("**/events", timeout=3000):
            page.get_by_role("button", name="Try now").click()
        expect(page.locator("#banner")).to_contain_text("no answer for 6 s")
    finally:
        controller.process.send_signal(signal.SIGCONT)
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.locator("#pulse")).to_contain_text("live")


def test_a_page_that_nobody_sees_gives_its_connection_back(start: Callable[..., Process], visit: Visit) -> None:
    page = visit(start("controller", *controller_arguments()).url)
    expect(page.locator("#pulse")).to_contain_text("live")
    # A browser without a window shows every tab: here the page is told that it is hidden.
    see = """
    hidden => {
      Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }
    """
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/events")):
        page.evaluate(see, True)
    expect(page.locator("#pulse")).to_contain_text("paused")
    with page.expect_request("**/events"):
        page.evaluate(see, False)
    expect(page.locator("#pulse")).to_contain_text("live")
    expect(page.locator("#banner")).to_be_hidden()


def test_a_mistake_in_the_peers_file_keeps_its_lines(start: Callable[..., Process], visit: Visit, tmp_path: Path) -> None:
    peers = tmp_path / "peers.yaml"
    peers.write_text("peers:\n  - id: far\n    address: 127.0.0.1:1\n")
    controller = start("controller", *controller_arguments(), "--peers", str(peers))
    page = visit(controller.url)
    expect(page.locator("#peers")).to_contain_text("1 static peer from")
    peers.write_text("peers:\n  - id: far\n    adress: 127.0.0.1:1\n")
    warning = page.locator("#warnings pre")
    expect(warning).to_contain_text("adress")
    told = next(text for text in controller.topology()["warnings"] if "adress" in text)
    assert "\n" in told and warning.inner_text() == told
    expect(page.locator("#peers")).to_contain_text("What is there now is not in force")

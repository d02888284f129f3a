"""A controller that goes away, and one that wants a key."""

from collections.abc import Callable

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
    controller = start("guarded", "controller", "--fleet-token", TOKEN, "--admin-key", ADMIN)
    with crowd(controller, ["guarded-worker"], TOKEN):
        page = visit(controller.url)
        dialog = page.get_by_role("dialog", name="This controller wants a key")
        expect(dialog).to_be_visible()
        assert page.locator("#workers [data-worker]").count() == 0
        give = lambda key: (page.get_by_label("Fleet token or admin key").fill(key), page.keyboard.press("Enter"))
        give("not the key")
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
        expect(dialog).to_be_visible()
        expect(page.locator("#key-reason")).to_contain_text("the fleet token is not enough")
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        expect(page.locator("#said")).to_contain_text("Could not drain guarded-worker: no key was given")
        assert controller.workers(TOKEN)["guarded-worker"]["state"] == "ready"
        page.locator("#workers [data-worker-action]").click()
        page.locator("#confirm-button").click()
        give(ADMIN)
        eventually(lambda: controller.workers(TOKEN)["guarded-worker"]["state"] == "draining", "the admin may")

        page.get_by_role("button", name="Forget key").click()
        assert page.evaluate("sessionStorage.length") == 0

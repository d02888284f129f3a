"""Many workers, and workers with names that pages stumble over."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from conftest import Visit
from crowd import MODEL, crowd
from pages import pictured, shown_workers, told_nodes, told_workers
from processes import Process, eventually

MANY = 1000


@pytest.fixture
def controller(start: Callable[..., Process]) -> Process:
    return start("controller", "controller", "--heartbeat", "60s")


def test_a_name_is_shown_as_the_text_that_it_is(controller: Process, visit: Visit) -> None:
    names = ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "x" * 256, "עובד־ראשון", "a&amp;b \"c' #d"]
    with crowd(controller, names):
        page = visit(controller.url, width=360)
        eventually(lambda: set(shown_workers(page)) == set(names), "the table shows the names")
        assert pictured(page) == told_nodes(controller)
        assert page.locator("main img, main script").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") == 360, "a long name makes no page wide"
        for name in names:
            page.locator("#workers [data-node]").filter(has_text=name).click()
            expect(page.locator("#details-name")).to_have_text(name)
            page.keyboard.press("Escape")


def test_a_thousand_workers_are_all_there_and_can_be_found(controller: Process, visit: Visit) -> None:
    with crowd(controller, [f"worker-{number:04}" for number in range(MANY)]):
        page = visit(controller.url)
        rows, cells = "#workers [data-worker]", "#picture .cell"
        wait_for(page, rows, MANY)
        wait_for(page, cells, MANY)
        assert shown_workers(page) == told_workers(controller)
        assert pictured(page) == told_nodes(controller)

        controller.post("/drain", {"id": "worker-0777"})
        wait_for(page, f'{cells}[aria-label^="worker-0777, draining"]', 1)
        page.locator("#filter").fill("0777")
        wait_for(page, rows, 1)
        wait_for(page, f"{cells}:not([data-dim])", 1)
        page.locator("#filter").fill(f"{MODEL} draining")
        wait_for(page, rows, 1)

        page.locator(cells).first.focus()
        for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "ArrowRight"):
            page.keyboard.press(key)
        assert page.evaluate("document.activeElement.dataset.node") == "worker-0001"
        page.keyboard.press("End")
        page.keyboard.press("Enter")
        expect(page.locator("#details-name")).to_have_text(f"worker-{MANY - 1:04}")


def wait_for(page: Page, selector: str, number: int) -> None:
    """Not by `expect`, which describes the whole of a page that is not yet so: of this one, for ten seconds."""
    eventually(lambda: page.locator(selector).count() == number, f"{number} of {selector}")

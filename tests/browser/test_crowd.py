"""Many workers, and workers with names that pages stumble over."""

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

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
        expect(page.locator("#workers [data-worker]")).to_have_count(MANY)
        expect(page.locator("#picture .cell")).to_have_count(MANY)
        assert shown_workers(page) == told_workers(controller)
        assert pictured(page) == told_nodes(controller)

        controller.post("/drain", {"id": "worker-0777"})
        # By its label, since a search by role looks at every element of this page for longer than a second.
        expect(page.locator('.cell[aria-label^="worker-0777, draining"]')).to_be_visible()
        page.locator("#filter").fill("0777")
        expect(page.locator("#workers [data-worker]")).to_have_count(1)
        expect(page.locator("#picture .cell:not([data-dim])")).to_have_count(1)
        page.locator("#filter").fill(f"{MODEL} draining")
        expect(page.locator("#workers [data-worker]")).to_have_count(1)

        first = page.locator("#picture .cell").first
        first.focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#picture .cell").nth(1)).to_be_focused()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("End")
        expect(page.locator("#picture .cell").last).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#details-name")).to_have_text(f"worker-{MANY - 1:04}")

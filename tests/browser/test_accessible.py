"""Both pages as axe judges them, light and dark, wide and on a phone."""

import pytest
from axe_playwright_python.base import AXE_FILE_PATH
from playwright.sync_api import Page, expect

from conftest import Fleet, Visit
from pages import row

WIDTHS = (1280, 360)
SCHEMES = ("light", "dark")


def violations(page: Page) -> list[str]:
    page.evaluate(AXE_FILE_PATH.read_text())
    results = page.evaluate("axe.run({ resultTypes: ['violations'] })")
    return [
        f"{found['id']}: {found['help']}: {[node['html'][:160] for node in found['nodes'][:3]]}"
        for found in results["violations"]
    ]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_status_page_is_accessible(fleet: Fleet, visit: Visit, width: int, scheme: str) -> None:
    page = visit(fleet.controller.url, width=width, scheme=scheme)
    expect(row(page, "alpha")).to_be_visible()
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    row(page, "alpha").locator("[data-node]").click()
    expect(page.locator("#details")).to_be_visible()
    assert violations(page) == []
    page.keyboard.press("Escape")
    row(page, "alpha").locator("[data-worker-action]").click()
    expect(page.locator("#confirm-dialog")).to_be_visible()
    assert violations(page) == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_playground_is_accessible(fleet: Fleet, visit: Visit, width: int, scheme: str) -> None:
    page = visit(fleet.gateway.url, width=width, scheme=scheme)
    page.get_by_label("Message").fill("What is the capital of France?")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".message .numbers").last).to_contain_text("token")
    page.get_by_role("button", name="As curl").click()
    assert violations(page) == []
    page.get_by_role("tab", name="Embeddings").click()
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#embed-matrix td")).to_have_count(9)
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_theme_can_be_chosen_and_stays(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.controller.url, scheme="light")
    page.get_by_role("button", name="Switch to the dark theme").click()
    theme = lambda: page.evaluate("document.documentElement.dataset.theme")
    assert theme() == "dark"
    page.reload()
    assert theme() == "dark"
    page.get_by_role("button", name="Switch to the light theme").click()
    assert theme() == "light"

"""The status page of a controller with real workers: it says what the API says, and does what its buttons say."""

import re
from collections.abc import Callable

from playwright.sync_api import Page, expect

from conftest import Fleet, Visit
from pages import pictured, row, shown_models, shown_workers, told_models, told_nodes, told_workers
from processes import CHAT, EMBEDDING, Process, eventually

TABS = 60


def equals_the_api(page: Page, controller: Process) -> None:
    eventually(lambda: shown_workers(page) == told_workers(controller), "the table is as the API")
    eventually(lambda: pictured(page) == told_nodes(controller), "the picture is as the API")
    eventually(lambda: shown_models(page) == told_models(controller), "the models are as the API")


def test_the_page_says_what_the_api_says_before_and_after_a_worker_is_killed(
    start: Callable[..., Process], visit: Visit
) -> None:
    fleet = Fleet(start)
    page = visit(fleet.controller.url)
    equals_the_api(page, fleet.controller)
    assert fleet.controller.dispatch(CHAT) in fleet.workers  # a request is in flight from now on
    equals_the_api(page, fleet.controller)
    assert sum(tickets for _, tickets, _ in shown_workers(page).values()) == 1

    fleet.workers["beta"].kill()
    eventually(lambda: fleet.controller.workers()["beta"]["state"] == "gone", "the controller notices")
    equals_the_api(page, fleet.controller)
    assert shown_workers(page)["beta"][0] == "gone"
    change = page.locator("#changes li").first
    newest = fleet.controller.topology()["changes"][0]
    assert newest["worker"] == "beta" and newest["to"] == "gone"
    expect(change).to_contain_text("beta")
    expect(change).to_contain_text(newest["reason"])


def test_a_worker_is_drained_by_its_button_and_gets_nothing_until_it_is_resumed(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.controller.url)
    row(page, "beta").get_by_role("button", name="Drain beta").click()
    expect(page.locator("#confirm-dialog")).to_contain_text("Drain beta?")
    page.get_by_role("button", name="Cancel").click()
    assert fleet.controller.workers()["beta"]["state"] == "ready"

    row(page, "beta").get_by_role("button", name="Drain beta").click()
    page.locator("#confirm-button").click()
    expect(page.get_by_role("status").filter(has_text="beta drains")).to_be_visible()
    eventually(lambda: fleet.controller.workers()["beta"]["state"] == "draining", "the API says so")
    expect(row(page, "beta")).to_contain_text("draining")
    before = fleet.controller.workers()["beta"]["totals"]["requests"]
    for _ in range(6):
        fleet.embed()
    assert {fleet.controller.dispatch(EMBEDDING) for _ in range(6)} == {"alpha"}
    assert fleet.controller.workers()["beta"]["totals"]["requests"] == before

    row(page, "beta").get_by_role("button", name="Resume beta").click()
    page.locator("#confirm-button").click()
    eventually(lambda: fleet.controller.workers()["beta"]["state"] == "ready", "the API says so")
    expect(row(page, "beta").get_by_role("button", name="Drain beta")).to_be_enabled()


def test_a_worker_is_drained_by_the_keyboard_alone(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.controller.url)
    expect(row(page, "alpha")).to_be_visible()
    focused = lambda: page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.id")
    for _ in range(TABS):
        page.keyboard.press("Tab")
        if focused() == "Drain alpha":
            break
    assert focused() == "Drain alpha"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus can be seen"
    page.keyboard.press("Enter")
    eventually(lambda: focused() == "confirm-button", "the question has the focus")
    page.keyboard.press("Enter")
    eventually(lambda: fleet.controller.workers()["alpha"]["state"] == "draining", "it drains")
    expect(row(page, "alpha").get_by_role("button", name="Resume alpha")).to_be_focused()
    page.keyboard.press("Enter")
    eventually(lambda: focused() == "confirm-button", "the question has the focus")
    page.keyboard.press("Enter")
    eventually(lambda: fleet.controller.workers()["alpha"]["state"] == "ready", "it goes on")


def test_details_open_from_the_picture_and_hand_the_focus_back(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.controller.url)
    node = page.locator('#picture [data-node="alpha"]')
    node.focus()
    page.keyboard.press("Enter")
    details = page.get_by_role("dialog", name="alpha")
    worker = fleet.controller.workers()["alpha"]
    expect(details).to_contain_text("Relative speed1")
    for text in (worker["address"], worker["transport"], worker["version"], CHAT, EMBEDDING):
        expect(details).to_contain_text(text)
    page.keyboard.press("Escape")
    expect(details).to_be_hidden()
    expect(node).to_be_focused()


def test_charts_show_what_the_fleet_does(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.controller.url)
    chart = page.locator('[data-chart="requests"]')
    expect(chart.locator(".chart-value")).to_have_text("0")
    for _ in range(5):
        fleet.embed()
    expect(chart.locator(".chart-value")).not_to_have_text("0")

    def told() -> bool:
        # Asked anew each time: a sample may come between the two.
        most = max(sample["requests"] for sample in fleet.controller.topology()["history"])
        label = rf"Requests per second: \S+ now, at most {most} in the last ([6-9]\d s|[2-5] min)"
        shown = chart.get_by_role("img").get_attribute("aria-label") or ""
        return most > 0 and re.fullmatch(label, shown) is not None

    eventually(told, "the chart says what the controller does")


def test_the_filter_and_the_states_leave_only_what_is_meant(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.controller.url)
    rows = page.locator("#workers [data-worker]")
    expect(rows).to_have_count(2)
    page.get_by_role("searchbox").fill("alp")
    expect(rows).to_have_count(1)
    expect(page.locator("#workers-count")).to_have_text("1 of 2 workers")
    page.get_by_role("searchbox").fill(f"{EMBEDDING} ready")
    expect(rows).to_have_count(2)
    page.get_by_role("searchbox").fill("nothing is called so")
    expect(rows).to_have_count(0)
    expect(page.locator("#workers-empty")).to_be_visible()
    page.get_by_role("searchbox").fill("")
    page.locator("#chips").get_by_role("button", name="ready").click()
    expect(rows).to_have_count(2)
    page.get_by_role("button", name="Worker", exact=True).click()
    assert list(shown_workers(page)) == ["beta", "alpha"]


def test_a_worker_is_as_full_as_its_fullest_model(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.controller.url)
    worker = """
    async ([running, tickets]) => {
      const { fullness, queueWords } = await import("/assets/words.js");
      const model = (name, running, waiting) => ({ name, capacity: { running, waiting } });
      const models = [model("chat", 4, 4), model("embeddings", 128, 128)];
      const reported = [{ model: "chat", running, waiting: running }, { model: "embeddings", running: 0, waiting: 0 }];
      const worker = { models, reported, tickets };
      return [fullness(worker), queueWords(worker), queueWords({ ...worker, models: [models[0]] })];
    }
    """
    assert page.evaluate(worker, [4, 8]) == [1, "8", "8 of 8"]
    assert page.evaluate(worker, [2, 8])[0] == 0.5
    assert page.evaluate(worker, [0, 132])[0] == 0.5, "what was sent counts where nothing is said yet"


def test_the_details_lie_beside_the_page_where_there_is_room(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.controller.url, width=1440)
    row(page, "alpha").locator("[data-node]").click()
    panel = page.locator("#details").bounding_box()
    for button in (row(page, "beta").locator("[data-worker-action]"), page.locator("[data-theme-toggle]")):
        box = button.bounding_box()
        assert box["x"] + box["width"] <= panel["x"], "no button is behind the panel"
    assert page.evaluate("document.documentElement.scrollWidth") <= 1440

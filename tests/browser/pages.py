"""What the status page shows, read off it."""

import re

from playwright.sync_api import Page

from processes import Process

ROWS = """
rows => rows.map(row => ({
  id: row.querySelector("[data-node]").textContent,
  state: row.querySelector(".state-word").textContent,
  models: row.querySelector(".of-models").textContent,
  queue: row.querySelector(".queue").textContent,
  title: row.querySelector("[data-node]").title,
}))
"""
NODES = """
nodes => nodes.map(node => ({ id: node.dataset.node, state: node.dataset.state ?? null }))
"""


def shown_workers(page: Page) -> dict[str, tuple]:
    """Name to state, tickets and models, from the table."""
    rows = page.locator("#workers [data-worker]").evaluate_all(ROWS)
    return {row["id"]: (row["state"], int(re.match(r"\d+", row["queue"])[0]), row["models"]) for row in rows}


def told_workers(controller: Process, key: str | None = None) -> dict[str, tuple]:
    """The same as the API says it."""
    models = lambda worker: ", ".join(model["name"] for model in worker["models"]) or "no model"
    workers = controller.workers(key).items()
    return {name: (worker["state"], worker["tickets"], models(worker)) for name, worker in workers}


def pictured(page: Page) -> set[tuple]:
    """Every node of the picture, with its state where it is a worker."""
    nodes = page.locator("#picture [data-node]").evaluate_all(NODES)
    return {(node["id"], node["state"]) for node in nodes}


def told_nodes(controller: Process) -> set[tuple]:
    return {(node["id"], node.get("state")) for node in controller.topology()["nodes"]}


def shown_models(page: Page) -> dict[str, str]:
    heads = page.locator("#models [data-model]").evaluate_all(
        "models => models.map(model => [model.dataset.model, model.querySelector('.model-words').textContent])"
    )
    return dict(heads)


def told_models(controller: Process) -> dict[str, str]:
    plural = lambda number: f"{number} worker{'' if number == 1 else 's'}"
    return {
        model["name"]: f"{plural(model['workers'])} · {model['tickets']} in flight · {model['waiting']} waiting"
        for model in controller.topology()["models"]
    }


def row(page: Page, name: str):
    return page.locator("#workers [data-worker]").filter(has=page.locator(f'[data-node="{name}"]'))

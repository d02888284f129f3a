"""A browser, a fleet with a model in two workers, and pages on which nothing may go wrong unseen."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

from processes import EMBEDDING, Process, eventually

PATIENCE_MS = 15_000
expect.set_options(timeout=PATIENCE_MS)
# An HTTP proxy that the machine may have is not for loopback.
os.environ["NO_PROXY"] = "127.0.0.1"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "complaints(*parts): the console may say what has one of these parts")


@pytest.fixture(scope="session")
def binary() -> Path:
    path = os.environ.get("MUSTER_BINARY")
    if not path:
        pytest.exit("MUSTER_BINARY does not name a muster binary; scripts/test.sh sets it", returncode=2)
    return Path(path).resolve(strict=True)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if not path:
        pytest.exit("chromium is not installed; on Debian: apt-get install chromium", returncode=2)
    # The sandbox refuses to run as root, which CI is.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


class Fleet:
    """A controller, two workers with the models in the binary, and a gateway."""

    def __init__(self, start: Callable[..., Process]):
        self.start = start
        self.controller = start("controller", *controller_arguments())
        self.workers = {name: self.add_worker(name) for name in ("alpha", "beta")}
        self.gateway = start("gateway", "gateway", "--controller-address", self.controller.url, "--threads", "1")
        eventually(lambda: len(self.controller.workers()) == 2, "both workers are known")
        eventually(lambda: len(self.gateway.get("/v1/models")["data"]) == 2, "the gateway knows the models")

    def add_worker(self, name: str) -> Process:
        return self.start(name, *worker_arguments(name, self.controller.url))

    def embed(self, text: str = "hello") -> None:
        """Asks for something real."""
        self.gateway.post("/v1/embeddings", {"model": EMBEDDING, "input": text})


def controller_arguments() -> list[str]:
    """Quick to notice a silent worker, and no judge of how busy the machine of these tests is."""
    return ["controller", "--heartbeat", "500ms", "--pause-cpu", "off", "--pause-memory", "off"]


def worker_arguments(name: str, controller: str) -> list[str]:
    return ["worker", "--worker-id", name, "--controller-address", controller, "--threads", "1"]


@pytest.fixture(scope="session")
def start_for_all(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Process]]:
    yield from starting(binary, tmp_path_factory.mktemp("logs"))


@pytest.fixture
def start(binary: Path, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts a service on a port that the system chooses, until the test is over: its name, and its arguments."""
    yield from starting(binary, tmp_path)


def starting(binary: Path, logs: Path) -> Iterator[Callable[..., Process]]:
    with ExitStack() as stack:

        def start(name: str, *arguments: str, port: str = "0") -> Process:
            command = [*arguments, "--host", "127.0.0.1", "--port", port]
            return stack.enter_context(Process(binary, logs / name, *command))

        yield start


@pytest.fixture(scope="session")
def fleet(start_for_all: Callable[..., Process]) -> Fleet:
    return Fleet(start_for_all)


class Visit:
    """Opens pages, and notes what their consoles say and whom they ask."""

    def __init__(self, browser: Browser):
        self.browser = browser
        self.contexts: list[BrowserContext] = []
        self.said: list[str] = []
        self.asked: set[str] = set()

    def __call__(self, url: str, width: int = 1280, height: int = 900, scheme: str = "light") -> Page:
        context = self.browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
        )
        context.set_default_timeout(PATIENCE_MS)
        self.contexts.append(context)
        page = context.new_page()
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        page.on("request", self._request)
        page.on("dialog", lambda dialog: (self.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(url)
        return page

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.said.append(f"{message.type}: {message.text} ({message.location.get('url')})")

    def _request(self, request: Request) -> None:
        if not request.url.startswith("data:"):
            self.asked.add("/".join(request.url.split("/")[:3]))

    def close(self) -> None:
        for context in self.contexts:
            context.close()


@pytest.fixture
def visit(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """Opens a page; at the end of the test no console may have complained, and only this machine may have been asked."""
    visit = Visit(browser)
    yield visit
    visit.close()
    marker = request.node.get_closest_marker("complaints")
    expected = marker.args if marker else ()
    assert [said for said in visit.said if not any(part in said for part in expected)] == []
    assert [host for host in visit.asked if not host.startswith("http://127.0.0.1:")] == []

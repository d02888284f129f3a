"""Two fleets for the whole run: one open to everybody, one with keys and a small limit on bodies."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from muster import Muster

KEYS = ("first-key", "second-key")
BODY_LIMIT = 64 * 1024

# An HTTP proxy that the machine may have is not for loopback.
os.environ["NO_PROXY"] = "127.0.0.1"
started: list[Muster] = []


@pytest.fixture(scope="session")
def binary() -> Path:
    path = os.environ.get("MUSTER_BINARY")
    if not path:
        pytest.exit("MUSTER_BINARY does not name a muster binary; scripts/test.sh sets it", returncode=2)
    return Path(path).resolve(strict=True)


@pytest.fixture(scope="session")
def fleet(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Muster]:
    yield from run(Muster(binary, tmp_path_factory.mktemp("fleet") / "stderr"))


@pytest.fixture(scope="session")
def guarded(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Muster]:
    flags = ["--body-limit", f"{BODY_LIMIT // 1024}KiB"]
    for key in KEYS:
        flags += ["--api-key", key]
    yield from run(Muster(binary, tmp_path_factory.mktemp("guarded") / "stderr", *flags))


def run(fleet: Muster) -> Iterator[Muster]:
    with fleet:
        started.append(fleet)
        yield fleet


@pytest.fixture(scope="session")
def client(fleet: Muster) -> Iterator[OpenAI]:
    with fleet.client() as client:
        yield client


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """A failed test shows what the fleets have logged."""
    report = yield
    if report.failed:
        for fleet in started:
            report.sections.append((f"end of the log of {' '.join(fleet.command)}", fleet.tail()))
    return report

#!/usr/bin/env python3
"""How long the status page takes to show a thousand workers: JSON on standard output.

Each round opens the page anew in a headless Chromium, with workers that are registered under names only. Measured in
the page, from the moment at which the first event of `GET /events` has been received:

* `drawn_ms`: until everything is in the document;
* `painted_ms`: until the frame with it has been presented, by two animation frames.

    MUSTER_BINARY=target/release/muster target/browser-tests/bin/python scripts/bench/page.py
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "browser"))

from crowd import crowd  # noqa: E402
from playwright.sync_api import Browser, sync_playwright  # noqa: E402
from processes import Process  # noqa: E402

PAINTED = """
workers => new Promise(resolve => {
  const look = () => {
    const heard = performance.getEntriesByName("muster-heard")[0];
    const drawn = performance.getEntriesByName("muster-drawn").find(mark => heard && mark.startTime > heard.startTime);
    if (!drawn || document.querySelectorAll("#picture .cell").length < workers) {
      requestAnimationFrame(look);
      return;
    }
    requestAnimationFrame(() => requestAnimationFrame(() => resolve({
      drawn_ms: drawn.startTime - heard.startTime,
      painted_ms: performance.now() - heard.startTime,
      rows: document.querySelectorAll("#workers [data-worker]").length,
    })));
  };
  look();
})
"""


def one_round(browser: Browser, url: str, workers: int) -> dict:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(url)
    result = page.evaluate(PAINTED, workers)
    page.close()
    if result["rows"] != workers:
        raise SystemExit(f"the page shows {result['rows']} rows, not {workers}")
    return {name: round(value, 1) for name, value in result.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default=os.environ.get("MUSTER_BINARY", "target/release/muster"))
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        raise SystemExit("no chromium; on Debian: apt-get install chromium")
    names = [f"worker-{number:05}" for number in range(options.workers)]
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    arguments = ["controller", "--heartbeat", "600s", "--host", "127.0.0.1", "--port", "0"]
    with (
        tempfile.TemporaryDirectory() as folder,
        Process(Path(options.binary), Path(folder) / "log", *arguments) as controller,
        crowd(controller, names),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        rounds = [one_round(browser, controller.url, options.workers) for _ in range(options.rounds)]
        version = browser.version
        browser.close()
    painted = [result["painted_ms"] for result in rounds]
    report = {
        "workers": options.workers,
        "chromium": version,
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "load_before": os.getloadavg()[0],
        "rounds": rounds,
        "painted_ms": {"median": statistics.median(painted), "min": min(painted), "max": max(painted)},
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

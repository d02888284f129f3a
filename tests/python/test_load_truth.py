"""`scripts/load_truth.py` in small: what the controller counts is what the workers have."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "load_truth.py"


def test_the_controllers_counts_are_those_of_the_workers(binary: Path):
    command = [sys.executable, SCRIPT, binary, "--requests", "500", "--workers", "3", "--clients", "16", "--held", "6", "--every", "1"]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert ended.returncode == 0 and ended.stdout.count("all have ended; 0 streams held; equal") == 5, ended.stdout

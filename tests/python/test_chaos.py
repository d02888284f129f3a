"""`scripts/chaos.py` in small: what it counts is what it was written to find."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "chaos.py"


@pytest.mark.parametrize(
    "flags",
    [["--kills", "4", "--every", "0.5"], ["--kills", "3", "--transport", "grpc"], ["--outage", "2"]],
    ids=["workers", "workers over gRPC", "controller"],
)
def test_no_answer_is_lost_or_wrong(binary: Path, flags: list[str]):
    command = [sys.executable, SCRIPT, binary, "--clients", "16", "--workers", "2", *flags]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert ended.returncode == 0 and " 0 failed, 0 wrong" in ended.stdout, ended.stdout

"""What README.md tells the reader to type works as it says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from muster import Muster

README = (Path(__file__).parents[2] / "README.md").read_text()
VERBS = (
    "up", "controller", "worker", "gateway", "attach", "status", "drain", "resume", "models", "explain", "journal", "replay",
    "peers check", "chat", "doctor", "bench engine", "bench embed", "bench gateway", "bench fake-worker",
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def block(language: str, part: str) -> str:
    (found,) = (text for text in blocks(language) if part in text)
    return found


def here(text: str, fleet: Muster) -> str:
    return text.replace("http://127.0.0.1:8000", fleet.url)


def shell(command: str, **more: str) -> str:
    done = subprocess.run(["bash", "-euc", command], capture_output=True, text=True, timeout=60, env=more or None)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_curl_line_gives_the_answer_that_is_shown(fleet: Muster):
    answer = json.loads(shell(here(block("sh", "chat/completions"), fleet)))
    shown = json.loads(block("json", "chatcmpl"))
    for changing in ("id", "created"):
        answer.pop(changing), shown.pop(changing)
    # How much of the prompt was read before depends on what ran before.
    for usage in (answer["usage"], shown["usage"]):
        usage.pop("prompt_tokens_details")
    assert answer == shown


def test_the_python_example_prints_what_its_comments_say(fleet: Muster):
    source = here(block("python", "OpenAI("), fleet)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "The chemical symbol for gold is Au."
    # The story is drawn, and one in sixty is about somebody else.
    assert len("".join(lines[1:-1])) > 20, done.stdout
    assert lines[-1].endswith("128")


def test_the_lines_for_texts_and_tensors_answer(binary: Path, tmp_path: Path):
    models = Path(__file__).parents[1] / "models"
    served = {
        "reranker": models / "text-cross-encoder",
        "moods": models / "text-classifier",
        "softmax": models / "tensors/softmax/1/model.onnx",
    }
    flags = [flag for name, path in served.items() for flag in ("--model", f"{name}={path}")]
    with Muster(binary, tmp_path / "stderr", *flags) as fleet:
        told = shell(here(block("sh", "/v1/rerank"), fleet))
        ranked, classes, tokens = (json.loads(answer) for answer in re.split(r"(?<=})(?={)", told))
        assert ranked["results"][0]["document"]["text"] in ("A fleet for ONNX models.", "A kind of mustard.")
        assert len(ranked["results"]) == 1
        assert classes["data"][0]["label"] in classes["labels"]
        assert tokens["count"] == len(tokens["tokens"])

        source = block("python", "tritonclient").replace("127.0.0.1:8000", fleet.url.removeprefix("http://"))
        done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("0.5") == 6


def test_the_chat_line_answers(fleet: Muster, binary: Path):
    command = re.search(r"`target/release/muster (chat .*?)`", README)
    assert command
    answer = shell(f"{binary} {command[1]} --base-url {fleet.url}")
    assert answer.startswith("Muster is a serving fleet for ONNX models.")


def test_the_configuration_file_is_read(binary: Path, tmp_path: Path):
    file = tmp_path / "muster.yaml"
    file.write_text(block("yaml", "policy: lottery"))
    printed = {
        verb: shell(f"{binary} --config {file} {verb} --print-config", MY_KEY="k", HOME=str(tmp_path), PATH="/usr/bin:/bin")
        for verb in ("controller", "worker", "gateway")
    }
    assert "policy: lottery" in printed["controller"]
    assert "slots: 16" in printed["worker"]
    assert "***" in printed["gateway"]


def test_names_are_read_from_the_configuration(binary: Path, tmp_path: Path):
    file = tmp_path / "muster.yaml"
    file.write_text(block("yaml", "aliases:"))
    printed = shell(f"{binary} --config {file} controller --print-config", HOME=str(tmp_path), PATH="/usr/bin:/bin")
    assert "qwen-old: 90" in printed and "prefix_affinity" in printed, printed


def test_the_key_file_is_read(binary: Path, tmp_path: Path):
    file = tmp_path / "keys.yaml"
    file.write_text(block("yaml", "keys:"))
    command = f"{binary} gateway --api-key-file {file} --print-config"
    shell(command, BATCH_KEY="b", CHAT_KEY="c", HOME=str(tmp_path), PATH="/usr/bin:/bin")


@pytest.mark.parametrize("script", sorted(set(re.findall(r"scripts/[a-z-]+\.sh", README))))
def test_the_scripts_exist(script: str):
    path = Path(__file__).parents[2] / script
    assert path.stat().st_mode & 0o111, "it can be run"


def test_the_flags_and_variables_exist(binary: Path):
    known = "".join(shell(f"{binary} {verb} --help") for verb in VERBS)
    ours = README.replace("cargo install --path", "")
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ours)):
        assert flag in known, flag
    for variable in set(re.findall(r"\bMUSTER_[A-Z_]+[A-Z]\b", ours)):
        assert variable in known, variable


def test_the_commands_of_a_fleet_are_commands(binary: Path):
    texts = [text for text in blocks("sh") if "muster controller" in text or "muster attach" in text]
    assert len(texts) == 3
    for line in "".join(texts).splitlines():
        _, verb, *flags = line.split()
        shell(f"{binary} {verb} {' '.join(flags)} --help")


def test_the_certificates_are_made_and_taken(binary: Path, tmp_path: Path):
    shell(f"cd {tmp_path}\n" + block("sh", "openssl ecparam"))
    for service in ("controller", "worker", "gateway"):
        flags = f"--tls-cert {service}.pem --tls-key {service}.key --tls-client-ca ca.pem --tls-ca ca.pem"
        printed = shell(f"cd {tmp_path}; {binary} {service} {flags} --print-config")
        assert f"{service}.pem" in printed, printed


def test_the_peers_file_is_one(binary: Path, tmp_path: Path):
    file = tmp_path / "peers.yaml"
    file.write_text(block("yaml", "peers:"))
    assert "2 peers" in shell(f"{binary} peers check {file}")
    file.write_text(file.read_text().replace("10.0.0.7:21002", "10.0.0.7:70000"))
    told = subprocess.run([str(binary), "peers", "check", str(file)], capture_output=True, text=True)
    where = told.stderr.split("peers.yaml:3:14", 1)[1].rstrip()
    assert told.returncode == 1 and f"peers.yaml:3:14{where}\n" in block("text", "port 70000")

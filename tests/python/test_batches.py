"""Thirty-two answers in one run of the model, and exports of fewer bits: the same answers as alone and in full."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI

import data
from conftest import run
from muster import Muster

ROOT = Path(__file__).parents[2]
MODELS = {
    "full": ROOT / "model-worker/demo/chat",
    "concat": ROOT / "tests/models/demo-concat",
    "fp16": ROOT / "tests/models/demo-fp16",
    "int4": ROOT / "tests/models/demo-int4",
}
SLOTS = 32
# The examination's skills that the model has to the letter; tool calls come back as such, and have tests of their own.
CERTAIN = "capital element pick calendar color translate extract repeat sentiment faq small memory".split()


@pytest.fixture(scope="module")
def exports(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Muster]:
    flags = [flag for name, folder in MODELS.items() for flag in ("--model", f"{name}={folder}")]
    log = tmp_path_factory.mktemp("exports") / "stderr"
    yield from run(Muster(binary, log, *flags, "--slots", str(SLOTS), "--waiting", "0"))


@pytest.fixture(scope="module")
def asked() -> list[list[dict]]:
    """Conversations of every such skill; the last message is the right answer."""
    examination = data.examination(data.SMALL)
    return [conversation["messages"] for skill in CERTAIN for conversation in examination[skill][:6]]


def answers(fleet: Muster, model: str, asked: list[list[dict]], at_once: int) -> list[str]:
    """The likeliest answers, so many of them in flight at any moment."""
    gate = asyncio.Semaphore(at_once)

    async def answer(client: AsyncOpenAI, messages: list[dict]) -> str:
        async with gate:
            completion = await client.chat.completions.create(model=model, messages=messages, temperature=0)
        return completion.choices[0].message.content

    async def all_of_them() -> list[str]:
        async with fleet.async_client() as client:
            return await asyncio.gather(*(answer(client, messages) for *messages, _ in asked))

    return asyncio.run(all_of_them())


def share(given: list[str], expected: list[str]) -> float:
    return sum(one == other for one, other in zip(given, expected, strict=True)) / len(expected)


def right(asked: list[list[dict]], given: list[str]) -> float:
    return share(given, [answer["content"] for *_, answer in asked])


def batches(fleet: Muster, model: str) -> tuple[float, float]:
    """Runs that added tokens so far, and the tokens they added."""
    name = "muster_worker_decode_step_sequences"
    return fleet.metric(f"{name}_count", model=model), fleet.metric(f"{name}_sum", model=model)


@pytest.mark.parametrize("model", ["full", "concat"])
def test_answers_in_a_batch_of_thirty_two_are_those_given_alone(exports: Muster, asked: list, model: str):
    alone = answers(exports, model, asked, 1)
    runs, tokens = batches(exports, model)
    together = answers(exports, model, asked, SLOTS)
    after = batches(exports, model)
    assert together == alone
    assert right(asked, alone) >= 0.98
    width = (after[1] - tokens) / (after[0] - runs)
    print(f"{model}: {right(asked, alone):.3f} right, alone and together; {width:.1f} sequences a run")
    # Measured: 8 to 17. On a busy machine the client is slower than the model.
    assert width > 2, "they ran together"


# Measured: 1.00 and 0.98.
@pytest.mark.parametrize("model, least", [("fp16", 0.98), ("int4", 0.9)])
def test_exports_of_fewer_bits_give_most_answers_of_the_full_one(
    exports: Muster, asked: list, model: str, least: float
):
    full, fewer = (answers(exports, name, asked, SLOTS) for name in ("full", model))
    print(f"{model}: {share(fewer, full):.3f} of the answers are the same, {right(asked, fewer):.3f} are right")
    assert share(fewer, full) >= least
    assert share(answers(exports, model, asked, 1), fewer) >= least

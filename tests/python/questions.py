"""Questions whose answers the demo chat model is known to give to the letter, greedily."""

from collections.abc import Callable
from random import Random

import data

Question = tuple[str, str]


def translate(rng: Random) -> Question:
    """Without "Translate …": there the model now and then calls its tool of that name instead of answering."""
    while True:
        question, answer = data.translate(rng)
        if not question.startswith("Translate"):
            return question, answer


SKILLS: list[Callable[[Random], Question]] = [
    data.calendar,
    data.capital,
    data.color,
    data.element,
    data.extract,
    data.faq,
    data.sentiment,
    data.small,
    translate,
]


def questions(skill: Callable[[Random], Question], count: int) -> list[Question]:
    """The same ones in every run."""
    rng = Random(skill.__name__)
    return [skill(rng) for _ in range(count)]


def mixed(count: int) -> list[Question]:
    """Different questions of all kinds."""
    each = [questions(skill, count) for skill in SKILLS]
    return list(dict.fromkeys(question for row in zip(*each) for question in row))[:count]


ONNX = (
    "ONNX is an open format for machine learning models. A model exported to ONNX is a graph of standard operators"
    " that many runtimes can run on many kinds of hardware."
)
STORY = "Tell me a story about a fox."

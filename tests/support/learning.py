"""A student over an engine that learns to recite, for tests: 64 questions, a fixed reply to each."""

import asyncio
from pathlib import Path
from typing import Any

from nlrl.distill.knobs import TrainingKnobs
from nlrl.engine.base import EngineInfo, Message, Request, Sampling
from nlrl.store import Manifest, RunStore
from nlrl.types import Example

QUESTIONS = [f"board {i % 8} {i // 8}: your turn to move" for i in range(64)]
KNOBS = TrainingKnobs(learning_rate=4e-3, epochs=16, batch=16, threads=1, device="cpu")


def reply(question: str) -> str:
    """Depends on one number of the question, so that it can be learned in seconds."""
    return f"move: {question.split()[1]}"


def recitation(iteration: int = 1, questions: list[str] = QUESTIONS) -> list[Example]:
    return [
        Example(f"{iteration}/policy/{i}/0//0", "policy", (("user", question),), reply(question), sources=(i,))
        for i, question in enumerate(questions)
    ]


def answers(engine: Any, questions: list[str] = QUESTIONS, temperature: float = 0.0) -> list[str]:
    """What the engine says to each question, greedily."""
    requests = [Request((Message("user", q),), Sampling(temperature, max_tokens=8)) for q in questions]
    return [completion.text for completion in asyncio.run(engine.generate(requests))]


def store(root: Path, name: str = "run") -> RunStore:
    return RunStore.create(root, name, Manifest({}, 0, {}, EngineInfo("torch", "tiny", "cpu")))

"""What vLLM's batch-invariant mode costs, and what it gives: `python -m nlrl.engine.invariance [MODEL ...]`, on a GPU.

A model is asked the same questions one at a time and all at once, without the mode and with it, in a process each, for
vLLM reads its switch while it is imported. Printed are tokens a second of the batch, and for how many questions the
reply, and every bit of its log-probabilities, is the same alone as among the others. Where a model or a machine has no
such mode, the sentence that refuses it is printed instead. About a minute a model.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from nlrl.engine.base import Completion, Engine, Message, Request, Sampling
from nlrl.errors import NlrlError
from nlrl.redact import without_secrets
from nlrl.safe_text import one_line

AT_ONCE = 64
ALONE = 16
"""Of the questions, how many are also asked one at a time."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One model in one mode."""

    tokens_a_second: float
    """Written, with `AT_ONCE` questions in flight."""
    alone: int
    """Questions that were also asked alone."""
    same_replies: int
    """Of those, how many have the same token ids."""
    same_bits: int
    """How many also the same log-probabilities, bit for bit."""
    farthest: float
    """Largest difference of two log-probabilities of one token, while the replies agree."""


def questions(count: int, max_tokens: int) -> list[Request]:
    """Different questions of different lengths, answered greedily."""
    sampling = Sampling(max_tokens=max_tokens, logprobs=True)
    said = [f"Position {i * 7919 % 97}: " + "the goal is not yet in sight. " * (1 + i % 9) for i in range(count)]
    return [Request((Message("user", text),), sampling) for text in said]


async def measure(engine: Engine, *, at_once: int = AT_ONCE, alone: int = ALONE, max_tokens: int = 128) -> Measured:
    """Ask an engine all at once, after a round to warm up, then the first few one at a time."""
    asked = questions(at_once, max_tokens)
    await engine.generate(asked)
    begun = time.perf_counter()
    together = await engine.generate([*asked])
    seconds = time.perf_counter() - begun
    single = [(await engine.generate([one]))[0] for one in asked[:alone]]
    return compared(together, single, seconds)


def compared(together: Sequence[Completion], single: Sequence[Completion], seconds: float) -> Measured:
    """What the replies to the same questions, among others and alone, have in common."""
    pairs = list(zip(together, single, strict=False))
    farthest = 0.0
    for one, other in pairs:
        for a, b, p, q in zip(one.token_ids, other.token_ids, one.logprobs, other.logprobs, strict=False):
            if a != b:
                break
            farthest = max(farthest, abs(p - q))
    written = sum(completion.completion_tokens for completion in together)
    same = [one.token_ids == other.token_ids for one, other in pairs]
    bits = [one and a.logprobs == b.logprobs for one, (a, b) in zip(same, pairs, strict=True)]
    return Measured(written / seconds, len(pairs), sum(same), sum(bits), farthest)


def in_a_process(model: str, mode: str) -> Measured | str:
    """`measure` in a process of its own; the sentence that it ended with when there is nothing to measure."""
    command = [sys.executable, "-m", "nlrl.engine.invariance", "--measure", model, mode]
    done = subprocess.run(command, capture_output=True, text=True, env=without_secrets(), check=False)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode == 0 and last.startswith("{"):
        return Measured(**json.loads(last))
    return one_line((done.stderr.strip().splitlines() or ["it ended without a word"])[-1], 300)


def line(model: str, mode: str, found: Measured | str, before: Measured | str | None = None) -> str:
    """A row of the table."""
    if isinstance(found, str):
        return f"| {model} | {mode} | {found} | | | |"
    cost = ""
    if isinstance(before, Measured):
        cost = f" ({before.tokens_a_second / found.tokens_a_second:.2f} times the time)"
    same = f"{found.same_replies}/{found.alone} | {found.same_bits}/{found.alone} | {found.farthest:.2g}"
    return f"| {model} | {mode} | {found.tokens_a_second:,.0f}{cost} | {same} |"


def _measure_here(model: str, mode: str) -> int:
    from nlrl.engine.vllm import VllmEngine

    async def go() -> Measured:
        engine = VllmEngine(model, batch_invariant=mode == "on")
        try:
            return await measure(engine)
        finally:
            await engine.close()

    try:
        print(json.dumps(asdict(asyncio.run(go()))), flush=True)
    except NlrlError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def main(arguments: Sequence[str]) -> int:
    """The command."""
    if arguments[:1] == ["--measure"]:
        return _measure_here(*arguments[1:])
    print(f"| model | batch-invariant mode | tokens/s, {AT_ONCE} at once | same reply alone | same bits | farthest |")
    print("|---|---|---|---|---|---|", flush=True)
    for model in arguments or ["hymba"]:
        off = in_a_process(model, "off")
        print(line(model, "off", off), flush=True)
        print(line(model, "on", in_a_process(model, "on"), off), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Whether a reply depends on what else is in the batch, and what it costs that it does not."""

import asyncio

import pytest

from nlrl.engine.base import Completion
from nlrl.engine.invariance import Measured, compared, in_a_process, line, measure
from nlrl.engine.scripted import ScriptedEngine


def said(ids, logprobs) -> Completion:
    return Completion("x", tuple(ids), (1,), "stop", None, 1, len(ids), tuple(logprobs))


def test_replies_are_compared_token_by_token_and_bit_by_bit():
    together = [said([1, 2], [-0.5, -1.0]), said([1, 2], [-0.5, -1.0]), said([1, 2], [-0.5, -9.0]), said([7], [0.0])]
    single = [said([1, 2], [-0.5, -1.0]), said([1, 2], [-0.5, -1.25]), said([1, 3], [-0.75, -1.0])]
    assert compared(together, single, 2.0) == Measured(3.5, 3, 2, 1, 0.25)


def test_an_engine_that_looks_at_its_batch_is_seen():
    class Fickle(ScriptedEngine):
        async def generate(self, requests):
            return [said([len(r.messages[0].content), len(requests)], [-0.5, -0.5]) for r in requests]

    fickle = asyncio.run(measure(Fickle([]), at_once=8, alone=3))
    script = ScriptedEngine(lambda r: said([len(r.messages[0].content)], [-1.0]))
    steady = asyncio.run(measure(script, at_once=8, alone=3))
    assert (fickle.same_replies, steady.same_replies, steady.same_bits, steady.alone) == (0, 3, 3, 3)


def test_the_table_tells_the_cost_or_why_there_is_none():
    off, on = Measured(900.0, 16, 9, 0, 0.125), Measured(300.0, 16, 16, 16, 0.0)
    assert line("hymba", "on", on, off) == "| hymba | on | 300 (3.00 times the time) | 16/16 | 16/16 | 0 |"
    assert line("hymba", "on", "It cannot.", off) == "| hymba | on | It cannot. | | | |"


@pytest.mark.vllm
@pytest.mark.full
def test_on_a_cpu_the_mode_is_refused_in_one_sentence():
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU has it")
    found = in_a_process("hymba", "on")
    assert isinstance(found, str)
    assert found.startswith("vLLM's batch-invariant mode needs an NVIDIA GPU")

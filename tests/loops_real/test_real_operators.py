"""Every operator with the full prompts of every game on a real pretrained model; its rates are printed as they are.

What is asserted is what nlrl promises whatever the model: held to the form, a reply is of the form and its move is
legal; whatever is not is a typed failure.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from real_model import ROLES, Asked, ask_everything, model_folder, table
from real_server import serving

from nlrl_envs import ENVS

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.real]

SETTINGS = {"max_model_len": 4096, "max_num_seqs": 64, "dtype": "bfloat16"}


@pytest.fixture(scope="module")
def folder() -> Path:
    return model_folder()


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Any]:
    from nlrl.engine.vllm import VllmEngine

    running = VllmEngine(str(folder), arguments=SETTINGS)
    yield running
    asyncio.run(running.close())


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The http engine before `nlrl serve FOLDER`."""
    from nlrl.engine.http import HttpEngine

    with serving(folder, tmp_path_factory.mktemp("served") / "log", SETTINGS) as address:
        yield HttpEngine(address, folder.name, prompt_set="full")


async def ask_all(engine: Any, free: bool = False) -> tuple[list[Asked], float]:
    started = time.monotonic()
    asked = await asyncio.gather(*(ask_everything(game, engine, free=free) for game in sorted(ENVS)))
    return list(asked), time.monotonic() - started


def assert_all_held(asked: list[Asked]) -> None:
    assert {call.role for a in asked for call, _ in a.calls} == set(ROLES)
    assert not [failure for a in asked for _, failure in a.calls if failure is not None]


def test_held_to_the_form_no_reply_is_bad_in_this_process(engine: Any, row: Callable[[str], None]) -> None:
    asked, seconds = asyncio.run(ask_all(engine))
    row(table(asked, seconds))
    assert_all_held(asked)


def test_left_free_every_bad_reply_is_a_typed_failure(engine: Any, row: Callable[[str], None]) -> None:
    """The model's own rates: what it writes when nothing but the prompt asks for the form."""
    asked, seconds = asyncio.run(ask_all(engine, free=True))
    row(table(asked, seconds))
    for game in asked:
        for (call, failure), reply in zip(game.calls, game.replies, strict=True):
            assert failure is None or failure.kind in ("cut", "format", "illegal", "empty"), failure
            assert reply.finish_reason == "stop" or failure is not None, call


def test_held_to_the_form_no_reply_is_bad_through_a_server(served: Any, row: Callable[[str], None]) -> None:
    async def go() -> tuple[list[Asked], float]:
        try:
            return await ask_all(served)
        finally:
            await served.close()

    asked, seconds = asyncio.run(go())
    row(table(asked, seconds))
    assert_all_held(asked)

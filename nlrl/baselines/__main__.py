"""Trains a baseline and prints how it came on: `python -m nlrl.baselines ppo --game tic_tac_toe --backbone hymba`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from nlrl import registry
from nlrl.errors import EnvError, NlrlError
from nlrl_envs.base import SeatedEnv, TextEnv
from nlrl_envs.opponents import Opponent, OpponentError, make_opponent

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

Game = Annotated[str, typer.Option(help="A name of `nlrl_envs.ENVS`.")]
Map = Annotated[str, typer.Option(help="The game's board or map; empty for its own.")]
Against = Annotated[str, typer.Option(help="Opponent in games of two, as in nlrl_envs.opponents.")]
Backbone = Annotated[str, typer.Option(help="Name of a backbone, a folder or a hub id.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the trained model.")]


@app.command()
def ppo(
    game: Game = "tic_tac_toe",
    map_: Annotated[str, typer.Option("--map")] = "",
    opponent: Against = "random",
    backbone: Backbone = "hymba",
    iterations: int = 30,
    games: int = 512,
    learning_rate: float = 1e-5,
    critic_learning_rate: float = 1e-5,
    temperature: float = 0.7,
    graded_games: int = 512,
    seed: int = 0,
    out: Out = None,
) -> None:
    """PPO over the legal moves' token logits; the defaults are the paper's setting."""
    from nlrl.baselines.loading import load_learner
    from nlrl.baselines.move_logits import MoveActor
    from nlrl.baselines.ppo import PpoKnobs, ppo_agent, train_ppo
    from nlrl.baselines.report import evaluate

    env, other = _game(game, map_, opponent)
    learner = load_learner(backbone, game, env)
    actor = MoveActor(learner.model, learner.tokenizer, learner.ask, temperature=temperature)
    knobs = PpoKnobs(iterations, games, learning_rate=learning_rate, critic_learning_rate=critic_learning_rate)
    begun = time.perf_counter()
    for one in train_ppo(env, actor, other, knobs=knobs, seed=seed):
        print(
            f"iteration {one.iteration}: win {one.games.win_by_seats:.4f}, return {one.games.all.returns}, "
            f"{one.turns} turns, {one.lost_turns} lost, entropy {one.entropy:.3f}, {time.perf_counter() - begun:.0f} s",
            flush=True,
        )
    grades = asyncio.run(evaluate(env, ppo_agent(actor), other, games=graded_games, seed=seed + 1))
    print("\n".join(grades.lines()))
    _save(learner.model, learner.tokenizer, out)


@app.command()
def grpo(
    game: Game = "tic_tac_toe",
    map_: Annotated[str, typer.Option("--map")] = "",
    opponent: Against = "random",
    backbone: Backbone = "hymba",
    situations: int = 256,
    steps: int = 100,
    prompts: int = 8,
    replies: int = 8,
    learning_rate: float = 1e-6,
    temperature: float = 1.0,
    graded_games: int = 64,
    seed: int = 0,
    out: Out = None,
) -> None:
    """GRPO by TRL's trainer on the plain policy prompt, each reply rewarded by playing on from its move."""
    from nlrl.agents import plain_agent
    from nlrl.baselines.grpo import GrpoKnobs, PlayedOn, random_roots, train_grpo
    from nlrl.baselines.loading import load_learner
    from nlrl.baselines.report import evaluate
    from nlrl.engine.torch import TorchEngine

    env, other = _game(game, map_, opponent)
    learner = load_learner(backbone, game, env)
    reward = PlayedOn(env, random_roots(env, other, situations, seed), learner.ask, other, seed=seed)
    knobs = GrpoKnobs(steps, prompts, replies, learning_rate, temperature)
    rows = train_grpo(learner.model, learner.tokenizer, reward, knobs=knobs, seed=seed, watch=_print_step)
    print(f"{len(rows)} steps; replies: {dict(sorted(reward.failures.items()))} ('' could be used)")
    with tempfile.TemporaryDirectory() as scratch:
        folder = out or Path(scratch)
        _save(learner.model, learner.tokenizer, folder)
        engine = TorchEngine(str(folder), seed=seed)
        ask = replace(learner.ask, engine=engine)
        print("\n".join(asyncio.run(evaluate(env, plain_agent(ask), other, games=graded_games, seed=seed + 1)).lines()))


def _print_step(row: dict[str, float]) -> None:
    if "reward" in row:
        print(f"reward {float(row['reward']):7.3f} +- {float(row['reward_std']):.3f}", flush=True)


def _game(game: str, map_: str, opponent: str) -> tuple[TextEnv, Opponent | None]:
    make = registry.load("env", game)
    try:
        env: TextEnv = make(map_) if map_ else make()
        return env, make_opponent(opponent, env) if isinstance(env, SeatedEnv) else None
    except (ValueError, OpponentError) as error:
        raise EnvError(str(error)) from error


def _save(model: object, tokenizer: object, out: Path | None) -> None:
    if out is not None:
        model.save_pretrained(out)  # type: ignore[attr-defined]
        tokenizer.save_pretrained(out)  # type: ignore[attr-defined]


if __name__ == "__main__":
    try:
        app()
    except NlrlError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)

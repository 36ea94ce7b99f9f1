"""The command line. Every command is a few lines around a function that can be called from Python."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from nlrl import __version__, bench
from nlrl.config import load_config, parse_override, recipes
from nlrl.errors import ConfigError, NlrlError
from nlrl.redact import redact, redact_logs
from nlrl.safe_text import one_line, safe_text

app = typer.Typer(
    name="nlrl",
    help="Natural-language reinforcement learning: policy, value and improvement in words, on any backbone.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(bench.app)

RUNS = Path("runs/out")
Overrides = Annotated[list[str] | None, typer.Option("-s", "--set", help="Override a recipe key: env.map=umaze.")]
Plain = Annotated[bool, typer.Option("--plain", help="Lines instead of the live view.")]
RunsFolder = Annotated[Path, typer.Option("--runs", help="Folder of the records.")]


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    """Options that need no command."""
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help=f"A recipe ({', '.join(recipes())}) or a path to a .toml file.")],
    backbone: Annotated[str | None, typer.Option(help="A model in the box, a folder, or a hub id.")] = None,
    engine: Annotated[str | None, typer.Option(help="vllm, http, torch or oracle.")] = None,
    base_url: Annotated[str | None, typer.Option(help="An OpenAI-compatible server, for --engine http.")] = None,
    map_: Annotated[str | None, typer.Option("--map", help="A map of the game, or random:SEED.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that is drawn.")] = None,
    set_: Overrides = None,
    run_id: Annotated[str | None, typer.Option("--id", help="Name of the record; made up when absent.")] = None,
    reuse: Annotated[str | None, typer.Option(help="A recorded run whose answers to the same questions serve.")] = None,
    runs: RunsFolder = RUNS,
    plain: Plain = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would cost; ask nothing.")] = False,
) -> None:
    """Run a recipe: watch it think, record everything, and grade it against the exact optimum."""
    from nlrl.session import Place, print_estimate, run_recorded

    named = {
        "engine.backbone": backbone,
        "engine.kind": engine or ("http" if base_url else None),
        "engine.base_url": base_url,
        "env.map": map_,
        "seed": seed,
    }
    overrides: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
    overrides |= dict(parse_override(text) for text in set_ or ())
    config = load_config(recipe, overrides)
    if dry_run:
        asyncio.run(print_estimate(config))
        return
    raise typer.Exit(asyncio.run(run_recorded(config, Place(runs, run_id, plain), reuse)))


@app.command()
def resume(
    run_id: Annotated[str, typer.Argument(help="The record's name; see `nlrl runs`.")],
    set_: Overrides = None,
    force_new: Annotated[bool, typer.Option("--force-new", help="Begin a new run with that run's recipe.")] = False,
    runs: RunsFolder = RUNS,
    plain: Plain = False,
) -> None:
    """Go on with a run that was stopped or killed; no answer it has is asked for again."""
    from nlrl.session import Place, resume_recorded

    overrides = dict(parse_override(text) for text in set_ or ())
    raise typer.Exit(asyncio.run(resume_recorded(Place(runs, run_id, plain), overrides, force_new=force_new)))


@app.command()
def replay(
    run_id: Annotated[str, typer.Argument(help="The record's name; see `nlrl runs`.")],
    game: Annotated[int | None, typer.Option(help="Number of the game, in the run or in the phase.")] = None,
    iteration: Annotated[int | None, typer.Option(help="Of a loop that learns.")] = None,
    phase: Annotated[str | None, typer.Option(help="collect, improve or evaluate.")] = None,
    runs: RunsFolder = RUNS,
    svg: Annotated[Path | None, typer.Option(help="Write a moment of the game as an SVG picture instead.")] = None,
    cast: Annotated[Path | None, typer.Option(help="Write the whole game as an asciicast (.cast) instead.")] = None,
    frame: Annotated[int, typer.Option(help="Which moment, for --svg; the last by default.")] = -1,
) -> None:
    """Step through a recorded game: n next, p previous, q quit."""
    from nlrl.archive import Which, replay_recorded

    which = Which(game, iteration, phase)
    replay_recorded(runs, run_id, which, svg if cast is None else cast.with_suffix(".cast"), frame)


@app.command(name="runs")
def runs_(runs: RunsFolder = RUNS) -> None:
    """List the recorded runs."""
    from nlrl.archive import list_recorded

    list_recorded(runs)


@app.command()
def export(
    run_id: Annotated[str, typer.Argument(help="The record's name; see `nlrl runs`.")],
    target: Annotated[Path, typer.Argument(help="A new .jsonl or .sqlite file, or a folder for Parquet.")],
    lessons: Annotated[bool, typer.Option("--lessons", help="What each student was trained on, by iteration.")] = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Write a run for other tools: its calls as chat JSON lines, its tables, or its training data."""
    from nlrl.archive import export_recorded

    export_recorded(runs, run_id, target, lessons=lessons)


@app.command()
def rm(
    run_id: Annotated[str, typer.Argument(help="The record's name; see `nlrl runs`.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Delete a recorded run."""
    from nlrl.archive import recorded, remove_recorded

    folder = recorded(runs, run_id)
    if not yes:
        typer.confirm(f"Delete {folder} with everything in it?", abort=True)
    remove_recorded(runs, run_id)


@app.command()
def sweep(
    env: Annotated[str, typer.Option("--env", help="maze, frozen_lake, or a small game of two: tic_tac_toe.")] = "maze",
    map_: Annotated[str | None, typer.Option("--map", help="A maze (double_t) or a lake (4x4).")] = None,
    values: Annotated[str, typer.Option(help="Start from: zero, or manhattan (one improvement only).")] = "zero",
) -> None:
    """Policy iteration in exact numbers: the oracle engine through the language operators, against the solver."""
    from nlrl.exact import print_sweeps
    from nlrl.exact_games import print_policies
    from nlrl.exact_lake import print_lake

    if env == "maze":
        print_sweeps(map_ or "double_t", values)
    elif env == "frozen_lake":
        print_lake(map_ or "4x4")
    else:
        print_policies(env)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    backbone: Annotated[str, typer.Argument(help="A model in the box, a folder, or a hub id.")] = "hymba",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
) -> None:
    """Serve a backbone with vLLM's own OpenAI-compatible server; further options go to that server."""
    from nlrl.serve import serve as serve_model

    raise typer.Exit(serve_model(backbone, host=host, port=port, extra=tuple(context.args)))


@app.command()
def doctor(deep: Annotated[bool, typer.Option("--deep", help="Also start vLLM's registry.")] = False) -> None:
    """Say what is installed, which engine and kernels would run, and what to do about each problem."""
    from nlrl.doctor import exit_code, main

    raise typer.Exit(exit_code(main(deep=deep)))


@app.command()
def pretrain(
    backbone: Annotated[list[str] | None, typer.Option(help="Whose shape; several train on the same batches.")] = None,
    games: Annotated[list[str] | None, typer.Option(help="Whose texts are learned; absent: the maze's.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to; several models get one each.")] = RUNS / "pretrained",
    seed: Annotated[int, typer.Option(help="Seed of corpus, weights and order.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 4640,
    max_seconds: Annotated[float, typer.Option(min=1, help="The schedule ends by then.")] = 500.0,
    pause_seconds: Annotated[float | None, typer.Option(min=1, help="Pause then; the same command goes on.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that write the corpus.")] = max(1, (os.cpu_count() or 2) - 2),
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens a batch, padding included.")] = 65536,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the layers with torch.compile first.")] = False,
) -> None:
    """Make a model in the box again: corpus, tokenizer, training from scratch, grading."""
    try:
        from nlrl.pretrain.train import PretrainConfig
        from nlrl.pretrain.train import pretrain as train
    except ImportError as error:
        raise ConfigError(f"Training needs '{error.name}': install nlrl[train].") from error
    config = PretrainConfig(
        tuple(backbone or ["hymba"]), tuple(games or ["maze"]), seed, steps=steps,
        max_seconds=max_seconds, workers=workers, batch_tokens=batch_tokens, compiled=compiled,
        pause_seconds=pause_seconds,
    )  # fmt: skip
    for card in train(config, out):
        for name, value in card.items():
            typer.echo(f"{name}: {value}")


@app.command()
def reproduce(
    table: Annotated[str, typer.Argument(help="learning, ablations or architecture.")] = "learning",
    row: Annotated[list[str] | None, typer.Option(help="Only these rows.")] = None,
    backbone: Annotated[list[str] | None, typer.Option(help="Models to run them with.")] = None,
    models: Annotated[Path | None, typer.Option(help="A folder with one model a backbone, by `nlrl pretrain`.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many, from 0.")] = 1,
    limit: Annotated[float | None, typer.Option(min=1, help="Seconds; the same command goes on.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of records and results.")] = RUNS / "reproduce",
    set_: Overrides = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the rows; run nothing.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print the commands for a GPU; run nothing.")] = False,
    write: Annotated[
        bool, typer.Option("--table", help="Write tables and plots of --out, else of the kept results.")
    ] = False,
    tables: Annotated[Path, typer.Option("--tables", help="Where --table writes.")] = Path("runs/tables"),
) -> None:
    """Try the paper's results again: run rows, resume them, write the table and the plots from what was measured."""
    from nlrl.reproduce import command
    from nlrl.reproduce.rows import rows_of

    if list_:
        command.print_rows()
        return
    if plan:
        command.print_plan(str(out))
        return
    rows = rows_of(table, row)
    if write:
        command.write_table(table, rows, command.folders_of_results(out), tables)
        return
    overrides = dict(parse_override(text) for text in set_ or ())
    raise typer.Exit(
        command.run_rows(command.Plan(table, rows, tuple(backbone or ["hymba"]), seeds, out, models, limit, overrides))
    )


@app.command()
def explain(
    run_id: Annotated[str, typer.Argument(help="The record's name; see `nlrl runs`.")],
    state: Annotated[str | None, typer.Option(help="Words of the observation; absent: where play got better.")] = None,
    before: Annotated[int | None, typer.Option(help="Iteration; the first with evidence by default.")] = None,
    after: Annotated[int | None, typer.Option(help="Iteration; the last with evidence by default.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write it as Markdown instead.")] = None,
    runs: RunsFolder = RUNS,
) -> None:
    """Follow one position through a run: what was tried, what was said of it, what was chosen, and what is best."""
    from nlrl.reproduce.explain import explain_recorded

    explain_recorded(runs, run_id, state, (before, after), markdown)


@app.command()
def convert(
    family: Annotated[str, typer.Argument(help="hymba, diff, diffllama, ngpt, bimamba or gguf.")],
    source: Annotated[Path, typer.Argument(help="Folder in the layout its authors publish; of gguf, the file.")],
    target: Annotated[Path, typer.Argument(help="Folder to make.")],
    packed: Annotated[bool, typer.Option("--packed", help="One bit a weight (bimamba).")] = False,
) -> None:
    """Turn an official checkpoint into a folder that transformers and vLLM load; runs no code of the checkpoint."""
    from nlrl.convert import print_conversion

    print_conversion(family, source, target, packed=packed)


@app.command()
def backbones() -> None:
    """List the backbones: parameters, cache bytes, and what has been verified of each."""
    from nlrl.convert import print_backbones

    print_backbones()


def main() -> None:
    """Entry point: one sentence and an exit code for every failure we foresee, no traceback; never a key."""
    redact_logs()
    try:
        app(standalone_mode=True)
    except NlrlError as error:
        typer.echo(f"nlrl: {one_line(redact(str(error)), 2000)}", err=True)
        sys.exit(error.exit_code)
    except Exception:
        typer.echo(safe_text(redact(traceback.format_exc())), err=True, nl=False)
        sys.exit(1)


if __name__ == "__main__":
    main()

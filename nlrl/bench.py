"""`nlrl bench`: what is fast and how fast, measured on this machine. What measures is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from nlrl.errors import EngineUnavailableError

app = typer.Typer(
    name="bench",
    help="Measure kernels, serving and training on this machine's GPU, beside what would run in their place.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RESULTS = Path("runs/bench")
Out = Annotated[Path, typer.Option(help="Folder of the results, which grow as they come.")]
Limit = Annotated[float, typer.Option(min=1, help="Begin nothing after so many seconds.")]


@app.command()
def kernels(
    only: Annotated[list[str] | None, typer.Option(help="A family or a kernel; may be given again.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few shapes of each kernel.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Tiny shapes against the references; needs no GPU.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Name the cases and stop.")] = False,
    limit: Limit = 540.0,
    out: Out = RESULTS,
) -> None:
    """Time every Triton kernel, once it is found right, against its goals and what would run in its place."""
    choice, bench = _needed("nlrl_kernels.bench.command", "Choice", "bench")
    raise typer.Exit(bench(choice(tuple(only or ()), quick, check, listed, limit, out)))


@app.command()
def serve(
    models: Annotated[str, typer.Option(help="Shapes with commas between; absent: all, the telling ones first.")] = "",
    tiny: Annotated[bool, typer.Option("--tiny", help="Tiny shapes, few tokens: that it runs, anywhere.")] = False,
    goals: Annotated[bool, typer.Option("--goals", help="Only what a goal asks for.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would run, and how long it may take; stop.")] = False,
    merge: Annotated[list[Path] | None, typer.Option(help="Make one table of these results; runs nothing.")] = None,
    limit: Limit = 540.0,
    out: Out = RESULTS,
) -> None:
    """Serve large shapes with random weights by vLLM, each in its own process: tokens a second, cache bytes, ratios."""
    choice, bench = _needed("nlrl_backbones.bench_serve.command", "Choice", "bench")
    names = tuple(name for name in models.split(",") if name)
    raise typer.Exit(bench(choice(names, tiny, goals, plan, tuple(merge or ()), limit, out)))


@app.command()
def train(
    shape: Annotated[str, typer.Option(help="124m, 0.5b, 1b, or tiny on any machine.")] = "124m",
    steps: Annotated[int, typer.Option(min=3, help="Steps that are timed.")] = 20,
    limit: Limit = 540.0,
    out: Out = RESULTS,
) -> None:
    """Time a training step of nGPT beside the GPT baseline of its paper and a Llama, and what normalisation takes."""
    choice, bench = _needed("nlrl_backbones.bench_train", "Choice", "bench")
    raise typer.Exit(bench(choice(shape, steps, out, limit)))


@app.command()
def loop(
    recipe: Annotated[str, typer.Argument(help="A recipe whose loop trains one model.")] = "tic_tac_toe",
    backbone: Annotated[str, typer.Option(help="A model in the box, a folder, or a hub id.")] = "hymba",
    set_: Annotated[list[str] | None, typer.Option("-s", "--set", help="Override a recipe key.")] = None,
    apart: Annotated[bool, typer.Option("--apart/--together", help="vLLM's core in its own process.")] = True,
    iterations: Annotated[int, typer.Option(min=1, help="The last is the figure.")] = 2,
    profile: Annotated[bool, typer.Option("--profile", help="Count Python's calls too, which slows it.")] = False,
    limit: Limit = 480.0,
    out: Out = RESULTS,
) -> None:
    """Time each phase of a loop's iteration, and hold its tokens a second against the same requests as one batch."""
    choice, bench = _needed("nlrl.bench_loop", "Choice", "bench")
    raise typer.Exit(bench(choice(recipe, tuple(set_ or ()), backbone, apart, iterations, profile, limit, out)))


def _needed(module: str, *names: str) -> tuple[Callable[..., Any], ...]:
    """What measures; a sentence where the packages it needs are not installed."""
    from nlrl.registry import resolve

    try:
        return tuple(resolve(f"{module}:{name}") for name in names)
    except ImportError as error:
        raise EngineUnavailableError(
            f"Measuring needs '{error.name}': install nlrl[gpu], or nlrl[cpu] to try it without a GPU."
        ) from error

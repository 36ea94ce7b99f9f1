"""The command ``nlrl bench train``: a training step of nGPT beside those of the GPT it is compared with and of a Llama.

All three have the same matrices, AdamW, clipping, and bfloat16 products of float32 weights, as the published training
script of nGPT has; only nGPT is normalised after each step. Each runs as it is and through torch.compile, and nGPT also
in plain torch, without our kernels. Loshchilov et al. 2024 (arXiv 2410.01131) report that a step of their nGPT takes 60
to 80 % more time than one of the GPT.
"""

import argparse
import gc
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from nlrl_backbones.ngpt.config import MLP_RATIO, NGPTConfig
from nlrl_kernels import use_implementation


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the three models, and of a batch."""

    layers: int
    heads: int
    width: int
    vocabulary: int
    rows: int
    tokens: int


SHAPES = {
    "tiny": Shape(2, 2, 64, 128, 2, 16),
    "124m": Shape(12, 12, 768, 50304, 16, 1024),
    # Loshchilov et al. 2024, table 2.
    "0.5b": Shape(24, 16, 1024, 50304, 16, 1024),
    "1b": Shape(36, 20, 1280, 50304, 8, 1024),
}
GOALS = {"step of nGPT over that of its GPT": 1.10, "normalisation's share of nGPT's step": 0.03}
"""The most that each may be; each model in its faster way."""
_WARM_UP = 3


@dataclass(frozen=True)
class Choice:
    """What is to be run, and where files go; no model is begun after ``limit`` seconds."""

    shape: str = "124m"
    steps: int = 20
    out: Path = Path("runs/bench")
    limit: float = 540.0


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of a step, the normalisation at its end included, and of that alone; medians and deciles."""

    median: float
    low: float
    high: float
    normalisation: float

    @property
    def share(self) -> float:
        """Of the normalisation."""
        return self.normalisation / self.median


def bench(choice: Choice) -> int:
    """Run, print and write; 0, 1 where a model failed, or 2 for what cannot be run here."""
    if choice.shape not in SHAPES:
        print(f"There is no shape {choice.shape!r}: choose among {', '.join(SHAPES)}.", file=sys.stderr)
        return 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and choice.shape != "tiny":
        print("There is no GPU here to train on: add --shape tiny to see that it runs.", file=sys.stderr)
        return 2
    gpu = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    shape, began = SHAPES[choice.shape], time.monotonic()
    found: dict[str, Timing] = {}
    failed: dict[str, str] = {}
    left_out = []
    for name, (kind, is_compiled, is_plain) in _WAYS.items():
        if time.monotonic() - began > choice.limit:
            left_out.append(name)
            continue
        try:
            with use_implementation("reference") if is_plain else nullcontext():
                found[name] = timed(kind, shape, device, choice.steps, is_compiled=is_compiled)
        except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
            failed[name] = (str(error).splitlines() or [type(error).__name__])[0][:200]
        lines = [f"{gpu}, torch {torch.__version__}, shape {choice.shape}: {shape}", "", *table(found, failed, shape)]
        lines += [f"\nLeft out: {', '.join(left_out)}."] if left_out else []
        _write(choice, gpu, found, failed, lines)
        print(lines[-1] if name in failed else row(name, found[name], shape), flush=True)
    print("\n".join(["", *verdicts(found, is_tiny=choice.shape == "tiny")]), flush=True)
    return int(bool(failed))


_WAYS = {
    "ngpt": ("ngpt", False, False),
    "gpt": ("gpt", False, False),
    "llama": ("llama", False, False),
    "ngpt, compiled": ("ngpt", True, False),
    "gpt, compiled": ("gpt", True, False),
    "llama, compiled": ("llama", True, False),
    "ngpt in plain torch": ("ngpt", False, True),
}
"""Name to the model, whether it is compiled, and whether it runs without our kernels."""


def timed(kind: str, shape: Shape, device: str, steps: int, *, is_compiled: bool) -> Timing:
    """Times of so many training steps on random tokens, after some that are not timed."""
    one_step = _trained(kind, shape, device, is_compiled=is_compiled)
    laps = [_laps(one_step(), device) for _ in range(_WARM_UP + steps)][_WARM_UP:]
    del one_step
    torch.compiler.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    whole = [before + after for before, after in laps]
    deciles = statistics.quantiles(whole, n=10)
    return Timing(statistics.median(whole), deciles[0], deciles[-1], statistics.median(after for _, after in laps))


def _trained(kind: str, shape: Shape, device: str, *, is_compiled: bool) -> Callable[[], Iterator[None]]:
    """A function that makes a step of a fresh model; it pauses before, ahead of the normalisation, and after."""
    torch.manual_seed(0)
    model = build(kind, shape).to(device).train()
    groups = model.parameter_groups(0.1) if hasattr(model, "parameter_groups") else model.parameters()
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=device == "cuda")
    forward = torch.compile(model, dynamic=False) if is_compiled else model
    normalise: Callable[[], None] = getattr(model, "after_optimizer_step", lambda: None)
    ids = torch.randint(shape.vocabulary, (shape.rows, shape.tokens), device=device)
    normalise()

    def one_step() -> Iterator[None]:
        yield
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = forward(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield
        normalise()
        yield

    return one_step


def _laps(pauses: Iterator[None], device: str) -> tuple[float, float]:
    """Milliseconds between three pauses, by events on the GPU."""
    if device == "cpu":
        clocks = [time.perf_counter() for _ in pauses]
        return (clocks[1] - clocks[0]) * 1e3, (clocks[2] - clocks[1]) * 1e3
    events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
    for event, _ in zip(events, pauses, strict=True):
        event.record()
    torch.cuda.synchronize()
    return events[0].elapsed_time(events[1]), events[1].elapsed_time(events[2])


def build(kind: str, shape: Shape) -> Any:
    """nGPT, its GPT baseline, or a Llama with matrices of the same sizes; in float32."""
    if kind != "llama":
        from nlrl_backbones.ngpt.model import NGPTForCausalLM

        return NGPTForCausalLM(
            NGPTConfig(
                use_nGPT=int(kind == "ngpt"), n_layer=shape.layers, n_head=shape.heads, n_embd=shape.width,
                vocab_size=shape.vocabulary, block_size=shape.tokens,
            )
        )  # fmt: skip
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=MLP_RATIO * shape.width,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, max_position_embeddings=shape.tokens,
        tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


HEADER = "| model | step, ms (10 % .. 90 %) | tokens/s | normalisation, ms | of the step |\n|---|---|---|---|---|"


def row(name: str, timing: Timing, shape: Shape) -> str:
    """A line of the table."""
    times = f"{timing.median:.2f} ({timing.low:.2f} .. {timing.high:.2f})"
    rate = f"{shape.rows * shape.tokens / timing.median * 1e3:,.0f}"
    normal = f"{timing.normalisation:.3f} | {timing.share:.2%}" if name.startswith("ngpt") else "|"
    return f"| {name} | {times} | {rate} | {normal} |"


def table(found: Mapping[str, Timing], failed: Mapping[str, str], shape: Shape) -> list[str]:
    """Goals, then a row a model."""
    rows = [row(name, timing, shape) for name, timing in found.items()]
    rows += [f"| {name} | failed: {why} | | | |" for name, why in failed.items()]
    return [*verdicts(found, is_tiny=shape == SHAPES["tiny"]), "", HEADER, *rows]


def verdicts(found: Mapping[str, Timing], *, is_tiny: bool) -> list[str]:
    """The table of goals: reached, not reached or not measured."""
    ours, theirs = (_faster(found, kind) for kind in ("ngpt", "gpt"))
    ratio = None if ours is None or theirs is None else ours.median / theirs.median
    figures = zip(GOALS.items(), (ratio, None if ours is None else ours.share), strict=True)
    rows = ["| goal | at most | status | found |", "|---|---|---|---|"]
    for (goal, bound), figure in figures:
        status = "not measured" if figure is None else "reached" if figure <= bound else "not reached"
        status = "not measured: tiny shapes" if is_tiny and figure is not None else status
        rows.append(f"| {goal} | {bound:g} | {status} | {'' if figure is None else f'{figure:.3f}'} |")
    return rows


def _faster(found: Mapping[str, Timing], kind: str) -> Timing | None:
    """The faster of a model as it is and compiled; None until both have a time, or one of them cannot have."""
    both = [found[name] for name in (kind, f"{kind}, compiled") if name in found]
    return min(both, key=lambda timing: timing.median) if both else None


def _write(choice: Choice, gpu: str, found: Mapping[str, Timing], failed: Mapping[str, str], lines: list[str]) -> None:
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    stem = choice.out / f"{slug}-train-{choice.shape.replace('.', '_')}-{date.today().isoformat()}"
    choice.out.mkdir(parents=True, exist_ok=True)
    record = {
        "gpu": gpu, "torch": torch.__version__, "shape": asdict(SHAPES[choice.shape]), "steps": choice.steps,
        "models": {name: asdict(timing) for name, timing in found.items()}, "failed": failed,
    }  # fmt: skip
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="nlrl_backbones.bench_train", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default=Choice.shape, help="sizes of the models and of a batch")
    parser.add_argument("--steps", type=int, default=Choice.steps, help="steps that are timed")
    parser.add_argument("--limit", type=float, default=Choice.limit, metavar="SECONDS", help="begin no model after it")
    parser.add_argument("--out", type=Path, default=Choice.out, metavar="FOLDER", help="where files go")
    return bench(Choice(**vars(parser.parse_args(arguments))))


if __name__ == "__main__":
    sys.exit(main())

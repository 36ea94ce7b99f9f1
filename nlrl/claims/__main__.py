"""`python -m nlrl.claims CLAIM`: run the races of a claim, probe who took part, write the table."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from transformers import PreTrainedTokenizerFast

from nlrl.claims.binarised import binarised, packed_bytes
from nlrl.claims.contestants import contestants_of
from nlrl.claims.needles import logs
from nlrl.claims.probes import Probe, probe
from nlrl.claims.race import REPORTED, Race, batches, last_model, loss_on, race
from nlrl.claims.report import PROBES, table
from nlrl.claims.streams import Needles, Packed, Reader
from nlrl.errors import ConfigError, NlrlError
from nlrl.pretrain.corpus import SHARES
from nlrl.pretrain.tokenizer import train_tokenizer
from nlrl.pretrain.train import PretrainConfig, tokenizer_for

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
NEEDLES = (2, 4, 8)
GAMES = tuple(SHARES)


@app.command()
def try_claim(
    claim: Annotated[str, typer.Argument(help="ngpt, diff, hymba or bimamba.")],
    context: Annotated[list[int] | None, typer.Option(help="Tokens of a row; several for several races.")] = None,
    budgets: Annotated[str, typer.Option(help="Steps of the trainings, shortest first.")] = "250,500,1000,2000",
    rates: Annotated[str, typer.Option(help="Peaks of the learning rate to choose from.")] = "1e-3,3e-3,1e-2",
    seeds: Annotated[int, typer.Option(min=1, help="Races of each context.")] = 1,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a step.")] = 65536,
    workers: Annotated[int, typer.Option(min=0, help="Processes that write the text.")] = 8,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the layers with torch.compile first.")] = False,
    limit: Annotated[float, typer.Option(help="Seconds after which no further training begins.")] = float("inf"),
    probe_context: Annotated[list[int] | None, typer.Option(help="Lengths of the logs that are asked about.")] = None,
    out: Annotated[Path, typer.Option(help="Records go here; the same command goes on with them.")] = Path("claims"),
) -> None:
    """Try one paper's claim in miniature; what is finished in --out is not done again."""
    begun, folders = time.monotonic(), []
    taking_part = contestants_of(claim)
    tokenizer = _tokenizer(claim)
    for seed in range(seeds):
        for length in context or [1024]:
            if batch_tokens < length:
                raise ConfigError(f"A batch of {batch_tokens} tokens holds no row of {length}: raise --batch-tokens.")
            rows = batch_tokens // length
            stream = partial(_stream, claim, tokenizer, rows, length)
            folders.append(out / claim / f"{length}-{seed}")
            rules = Race(
                taking_part, stream, tokenizer, folders[-1],
                tuple(int(steps) for steps in _numbers(budgets)), tuple(_numbers(rates)),
                vocab_size=-(-len(tokenizer) // 16) * 16, seed=seed, workers=workers, compiled=compiled,
            )  # fmt: skip
            if not _run(rules, begun + limit):
                typer.echo(f"stopped by --limit after {time.monotonic() - begun:.0f} s; the same command goes on")
                break
            _probe(claim, rules, probe_context or [length])
    text = table(claim, [folder for folder in folders if folder.is_dir()])
    (out / f"{claim}.md").write_text(text + "\n")
    typer.echo(text)


def _run(rules: Race, until: float) -> bool:
    """Run a race, line by line; whether it came to its end in time."""
    for done in race(rules):
        typer.echo(json.dumps(asdict(done)))
        if time.monotonic() > until:
            return False
    return True


def _probe(claim: str, rules: Race, lengths: list[int]) -> None:
    """Write what the last models of a finished race find in logs, or what becomes of one that is binarised."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    if claim == "diff":
        reader = Reader(rules.tokenizer)
        for contestant in rules.contestants:
            model = last_model(rules, contestant.name)
            found[contestant.name] = {
                f"{asked.needles} needles in {asked.context:,} tokens": asdict(
                    probe(model, reader, asked, rules.device)
                )
                for asked in (Probe(length, needles) for length in lengths for needles in NEEDLES)
            }
    elif claim == "bimamba":
        models = {one.name: last_model(rules, one.name) for one in rules.contestants}
        models["mamba2 binarised afterwards"] = binarised(models["mamba2"], rules.tokenizer)
        for name, model in models.items():
            loss = loss_on(model, batches(rules, REPORTED), rules.device)
            found[name] = {"as served": {"loss": loss, "bytes": float(packed_bytes(model))}}
    if found:
        (rules.folder / PROBES).write_text(json.dumps(found, indent=2) + "\n")


def _stream(claim: str, tokenizer: PreTrainedTokenizerFast, rows: int, length: int, seed: int) -> Needles | Packed:
    if claim == "diff":
        return Needles(tokenizer, seed, rows, length, NEEDLES)
    return Packed(tokenizer, seed, rows, length, GAMES)


def _tokenizer(claim: str) -> PreTrainedTokenizerFast:
    """That of the boxed models, or for logs with needles one that has read such logs."""
    if claim != "diff":
        return tokenizer_for(PretrainConfig(games=GAMES))
    return train_tokenizer(_texts(), 640)


def _texts() -> Iterator[str]:
    for log in islice(logs(1, 2048, NEEDLES, len), 300):
        yield log.text + "".join(question + answer for question, answer in log.asked)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"'{text}' is not a list of numbers: write them with commas between, as 250,500.") from None


if __name__ == "__main__":
    try:
        app()
    except NlrlError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)

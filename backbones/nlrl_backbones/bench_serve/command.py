"""The command ``nlrl bench serve``, which is also ``python -m nlrl_backbones.bench_serve``."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nlrl_backbones.bench_serve import report
from nlrl_backbones.bench_serve.models import ORDER
from nlrl_backbones.bench_serve.workloads import FULL, TINY, chosen, start_seconds

ROOT = Path(__file__).resolve().parents[3]
_FOLDERS = [ROOT, *(ROOT / name for name in ("backbones", "kernels", "envs", "prompts"))]
"""Where our packages are in a checkout; without meaning in an installation."""


@dataclass(frozen=True)
class Choice:
    """What is to be run, and where files go.

    Attributes:
        models: names of ``models.ORDER``; empty for all.
        tiny: tiny shapes and few tokens, on any machine.
        goals: only what a goal asks for.
        plan: only say what would run.
        merge: files, or folders of files, to make one table of; runs nothing.
        limit: seconds for all; each model may take its share of what is left when its turn comes.
    """

    models: Sequence[str] = ()
    tiny: bool = False
    goals: bool = False
    plan: bool = False
    merge: Sequence[Path] = ()
    limit: float = 540.0
    out: Path = Path("runs/bench")


def bench(choice: Choice) -> int:
    """Run the models one after the other; 0 when each has all figures, 1 when one has not, 2 for what cannot be run."""
    names = tuple(choice.models) or ORDER
    if unknown := [name for name in names if name not in ORDER]:
        return _refused(f"There is no model {unknown[0]!r} to serve: choose among {', '.join(ORDER)}.")
    if choice.merge:
        return _merge(choice)
    _say_plan(names, choice)
    if choice.plan:
        return 0
    for package in ("torch", "vllm"):
        if find_spec(package) is None:
            return _refused(f"Serving needs '{package}': install nlrl[gpu], or nlrl[cpu] for --tiny.")
    import torch

    if not (choice.tiny or torch.cuda.is_available()):
        return _refused("There is no GPU here to serve large models on: add --tiny to see that it runs.")
    return _run(names, choice)


def _say_plan(names: Sequence[str], choice: Choice) -> None:
    total = 0.0
    for name in names:
        workloads = chosen(name, TINY if choice.tiny else FULL, only_goals=choice.goals)
        start, measuring = start_seconds(name), sum(workload.seconds for workload in workloads)
        _say(f"{name}: about {start} s to start and {measuring:.0f} s to measure {len(workloads)} workloads")
        total += start + measuring
    _say(f"about {total:.0f} s on an H100; what does not fit into {choice.limit:.0f} s is left out")


def _run(names: Sequence[str], choice: Choice) -> int:
    choice.out.mkdir(parents=True, exist_ok=True)
    stop = time.monotonic() + choice.limit
    files = {name: choice.out / f"serve-{'tiny-' if choice.tiny else ''}{name}.json" for name in names}
    waiting: _Child | None = None
    failed = False
    for i, name in enumerate(names):
        child = waiting or _Child(name, choice, files[name])
        share = (stop - time.monotonic()) / (len(names) - i)
        child.begin(share)
        # The next process loads its modules meanwhile, half a minute of one core.
        waiting = _Child(names[i + 1], choice, files[names[i + 1]]) if i + 1 < len(names) else None
        # A workload that takes longer than was thought may use up some of the others' time.
        if why := child.end((share + stop - time.monotonic()) / 2):
            _say(f"{name}: {why}")
            failed = True
    written = [path for path in files.values() if path.is_file()]
    return max(_write(report.read(written), choice), int(failed)) if written else 1


class _Child:
    """A process that measures one model; it waits for ``begin`` once it has loaded its modules."""

    def __init__(self, name: str, choice: Choice, file: Path) -> None:
        file.unlink(missing_ok=True)
        self._log = file.with_suffix(".log")
        size, which = "tiny" if choice.tiny else "full", "goals" if choice.goals else "all"
        module = "nlrl_backbones.bench_serve.vllm_measure"
        command = [sys.executable, "-m", module, name, size, which, str(file)]
        self._stream = self._log.open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stream, text=True
        )
        self._lines = threading.Thread(target=self._print, daemon=True)
        self._lines.start()

    def _print(self) -> None:
        """Pass on what the process says of itself; what vLLM says goes to the log."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._stream.write(line)
            if re.match(r"[\w.-]+: .*\{", line):
                _say(line.rstrip())

    def begin(self, seconds: float) -> None:
        """Let it start its engine, and measure what fits into so many seconds."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{seconds:.0f}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died already: `end` says so

    def end(self, limit: float) -> str | None:
        """Wait so long for its end; why it has not all figures, or None."""
        why = None
        try:
            code = self._process.wait(timeout=limit)
            why = f"ended with code {code}" if code else None
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            why = "ran out of time"
        self._lines.join(timeout=5.0)
        self._stream.close()
        if why is None:
            return None
        said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{why}; its log, {self._log}, ends with: {said[-1][:300] if said else 'nothing'}"


def environment() -> dict[str, str]:
    """What a process runs under: one process an engine, our packages importable, no network."""
    paths = [str(folder) for folder in _FOLDERS if folder.is_dir()]
    paths += [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {
        "VLLM_USE_FLASHINFER_SAMPLER": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING", **os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1",
    }  # fmt: skip


def _merge(choice: Choice) -> int:
    paths = [file for path in choice.merge for file in (sorted(path.glob("serve-*.json")) if path.is_dir() else [path])]
    try:
        records = report.read(paths)
    except ValueError as error:
        return _refused(str(error))
    if not records:
        return _refused("There are no results of nlrl bench serve in what --merge names.")
    return _write(records, choice)


def _write(records: dict[str, Any], choice: Choice) -> int:
    """Write and print the table; 1 when a model lacks figures."""
    gpu = next(iter(records.values()))["machine"]["gpu"]
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    stem = choice.out / f"{slug}-served-{'tiny-' if choice.tiny else ''}{date.today().isoformat()}"
    lines = [gpu, "", *report.verdicts(records), "", *report.table(records)]
    for name, record in records.items():
        if record["left_out"]:
            lines += ["", f"{name} has no figures of: {'; '.join(record['left_out'])}."]
    choice.out.mkdir(parents=True, exist_ok=True)
    merged = json.dumps({"models": list(records.values())}, indent=1)
    for suffix, text in ((".json", merged), (".md", "\n".join(lines))):
        stem.with_suffix(suffix).write_text(text + "\n", encoding="utf-8")
    _say("\n".join(["", *lines, "", str(stem.with_suffix(".json"))]))
    return int(any(record["left_out"] for record in records.values()))


def _say(line: str) -> None:
    print(line, flush=True)


def _refused(why: str) -> int:
    print(why, file=sys.stderr)
    return 2

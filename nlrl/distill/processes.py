"""A training in a group of processes, started by torchrun: one a GPU, or several on a CPU.

`train` is `nlrl.distill.training.train` for more than one process; this module is also what each of them runs. The job
travels as a JSON file, weights come back in the folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path

from nlrl.distill import training
from nlrl.distill.dataset import TokenPair
from nlrl.distill.knobs import Job, Outcome, Stopped, TrainingKnobs
from nlrl.errors import ConfigError, EngineError
from nlrl.redact import hidden_secrets

_POLL_SECONDS = 0.2


def train(job: Job, out: Path, stop: threading.Event | None = None) -> Outcome:
    """Train in `job.knobs.processes` processes and write the new model to `out`.

    Raises:
        ConfigError: `job.state` is of a training of other parameters.
        EngineError: a process failed; its last line is told.
        Stopped: `stop` was set.
    """
    with tempfile.TemporaryDirectory(prefix="nlrl-group-") as scratch:
        place = Path(scratch)
        (place / "job.json").write_text(_dumps(job, out), encoding="utf-8")
        group = ["--standalone", f"--nproc-per-node={job.knobs.processes}", "--module", __name__, str(place)]
        with hidden_secrets(), (place / "log").open("wb") as log:
            running = subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *group], stdout=log, stderr=subprocess.STDOUT
            )
        while running.poll() is None:
            if stop is not None and stop.wait(_POLL_SECONDS):
                running.terminate()  # torchrun ends its processes
                running.wait()
                raise Stopped
            if stop is None:
                running.wait()
        if (place / "refused").is_file():
            raise ConfigError((place / "refused").read_text(encoding="utf-8"))
        if running.returncode or not (place / "outcome.json").is_file():
            raise EngineError(f"The training in {job.knobs.processes} processes failed: {_last_error(place / 'log')}")
        said = json.loads((place / "outcome.json").read_text(encoding="utf-8"))
    return Outcome(tuple(said["losses_T"]), said["seconds"], said["peak_bytes"])


def _dumps(job: Job, out: Path) -> str:
    how = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(job.knobs).items()}
    return json.dumps(
        {
            "base": str(job.base.resolve()),
            "state": None if job.state is None else str(job.state.resolve()),
            "pairs": [(one.prompt, one.reply) for one in job.pairs],
            "knobs": how,
            "seed": job.seed,
            "out": str(out.resolve()),
        }
    )


def _loads(text: str) -> tuple[Job, Path]:
    said = json.loads(text)
    knobs = said["knobs"] | {"teacher": None if said["knobs"]["teacher"] is None else Path(said["knobs"]["teacher"])}
    pairs = tuple(TokenPair(tuple(prompt), tuple(reply)) for prompt, reply in said["pairs"])
    state = None if said["state"] is None else Path(said["state"])
    return Job(Path(said["base"]), state, pairs, TrainingKnobs(**knobs), said["seed"]), Path(said["out"])


def _last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if "Error" in line]
    return (lines[-1] if lines else "it said nothing")[:300]


def _member(place: Path) -> None:
    """One process of the group."""
    import torch.distributed as dist

    job, out = _loads((place / "job.json").read_text(encoding="utf-8"))
    try:
        outcome = training.train(job, out)
    except ConfigError as error:
        (place / "refused").write_text(str(error), encoding="utf-8")
        raise
    if dist.get_rank() == 0:
        (place / "outcome.json").write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    _member(Path(sys.argv[1]))

"""Check the served backbones on a CUDA machine in one go, and time them; every part runs even when others fail.

    python backbones/check_gpu.py --make-reference MODEL --reference ref.json      (anywhere, without vLLM)
    python backbones/check_gpu.py --model MODEL --reference ref.json --out DIR     (on the GPU machine)
    python backbones/check_gpu.py --only load --load hymba-1.5b --load llama-3.2-3b

``--model`` and ``--reference`` may be given several times, in pairs: folders of any backbone. Run it from the root of a
checkout, with vLLM, torch and transformers importable; nothing is fetched. Parts run in processes of their own: the
checks side by side, then the large shapes with random weights side by side, then the timings one by one. The verdict of
each is a row of the table, and an entry of ``check_gpu.json`` as soon as it is there.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_diff import RUNS, part_diff
from gpu_parts import make_reference, part_golden, part_kernels, part_load, part_model, part_speed

ROOT = Path(__file__).resolve().parents[1]
GRAPHS = ("none", "full_decode_only", "full_and_piecewise")
KINDS = ("kernels", "golden", "diff", "model", "load", "speed")

# What a machine without the package `wrapt` needs of it: hooks run at once.
_WRAPT = """
import importlib
def register_post_import_hook(hook, name):
    hook(importlib.import_module(name))
"""


def parts(models: list[tuple[Path, Path | None]], shapes: list[str], only: list[str]) -> list[list[list[str]]]:
    """Waves of parts, each a name and its arguments: the parts of a wave run together, the waves in turn."""
    checks = [["kernels"], *(["golden", graphs] for graphs in GRAPHS), *(["diff", *run] for run in RUNS)]
    for model, reference in models:
        if reference is not None:
            checks += [["model", str(model), str(reference), dtype] for dtype in ("bfloat16", "float32")]
    loads = [["load", shape] for shape in shapes]
    runs = (("bfloat16", "full_and_piecewise"), ("float32", "none"))
    timings = [["speed", str(model), dtype, graphs] for model, _ in models for dtype, graphs in runs]
    waves = [checks, loads, *([timing] for timing in timings)]
    chosen = [[words for words in wave if words[0] in only] for wave in waves]
    return [wave for wave in chosen if wave]


def run_part(words: list[str]) -> dict[str, Any]:
    """Run one part here and return its figures, or the traceback."""
    functions: dict[str, Callable[..., dict[str, Any]]] = {
        "kernels": part_kernels,
        "golden": part_golden,
        "diff": part_diff,
        "model": lambda model, reference, dtype: part_model(Path(model), Path(reference), dtype),
        "load": part_load,
        "speed": lambda model, dtype, graphs: part_speed(Path(model), dtype, graphs),
    }
    try:
        return functions[words[0]](*words[1:])
    except BaseException:
        return {"passed": False, "error": traceback.format_exc()}


def environment(scratch: Path) -> dict[str, str]:
    """What the parts run under: our packages importable in every process of theirs, vLLM in one process, no network."""
    paths = [str(ROOT), *(str(ROOT / name) for name in ("backbones", "kernels", "envs", "prompts"))]
    try:
        import wrapt  # noqa: F401
    except ImportError:
        (scratch / "wrapt.py").write_text(_WRAPT)
        paths.append(str(scratch))
    paths += [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {
        "VLLM_USE_FLASHINFER_SAMPLER": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING", **os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1",
    }  # fmt: skip


def label(words: list[str]) -> str:
    """The name of a part in the table."""
    return " ".join(Path(word).name for word in words)


def launch(words: list[str], out: Path, scratch: Path) -> tuple[subprocess.Popen[bytes], Path, Path]:
    """Start a part in a process; returns it, where its figures will be, and its log."""
    stem = label(words).replace(" ", "-")
    result, log = scratch / f"{stem}.json", out / f"{stem}.log"
    command = [sys.executable, __file__, "--part", *words, "--result", str(result)]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(scratch), stdout=stream, stderr=subprocess.STDOUT)
    return process, result, log


def collect(process: subprocess.Popen[bytes], result: Path, log: Path, deadline: float) -> dict[str, Any]:
    """Wait for a part until the deadline and read its figures."""
    try:
        process.wait(timeout=max(1.0, deadline - time.time()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return {"passed": False, "error": f"ran out of time; end of {log}:\n{_end(log)}"}
    if not result.is_file():
        return {"passed": False, "error": f"died ({process.returncode}); end of {log}:\n{_end(log)}"}
    return json.loads(result.read_text())


def _end(log: Path) -> str:
    return log.read_text(errors="replace")[-5000:]


def run_all(waves: list[list[list[str]]], out: Path, limit_s: float) -> bool:
    """Run all parts, print the table and the errors, write ``check_gpu.json``; true when all passed."""
    out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp())
    began = deadline = time.time()
    report: dict[str, Any] = {}

    def finish(words: list[str], running: tuple[subprocess.Popen[bytes], Path, Path]) -> None:
        name = label(words)
        report[name] = collect(*running, deadline)
        (out / "check_gpu.json").write_text(json.dumps(report, indent=1))
        figures = {key: value for key, value in report[name].items() if key not in ("passed", "error")}
        verdict = "passed" if report[name]["passed"] else "FAILED"
        print(f"{verdict}  {name}  after {time.time() - began:.0f} s  {json.dumps(figures)}", flush=True)
        if "error" in report[name]:
            print(report[name]["error"], flush=True)

    for number, wave in enumerate(waves, start=1):
        # What hangs may not take all the time of the waves after it.
        deadline = time.time() + (began + limit_s - time.time()) * (1.0 if number == len(waves) else 0.7)
        running = [(words, launch(words, out, scratch)) for words in wave]
        while running:
            # Whoever is done first is written first; past the deadline all are, as they stand.
            late = time.time() > deadline
            done = [entry for entry in running if late or entry[1][0].poll() is not None]
            running = [entry for entry in running if entry not in done]
            for words, started in done:
                finish(words, started)
            time.sleep(0 if done else 0.5)
    return all(figures["passed"] for figures in report.values())


def main() -> int:
    """Parse the arguments and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", default=[], help="folder of a model; may be repeated")
    parser.add_argument("--reference", type=Path, action="append", default=[], help="its figures (--make-reference)")
    parser.add_argument("--load", action="append", default=[], metavar="SHAPE", help="a shape of nlrl_backbones.shapes")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds of parts to run, with commas between")
    parser.add_argument("--make-reference", type=Path, metavar="MODEL", help="write --reference for this folder")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "check_gpu_out")), help="for the report")
    parser.add_argument("--limit", type=float, default=420, help="seconds for everything")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        figures = run_part(chosen.part)
        chosen.result.write_text(json.dumps(figures))
        print(json.dumps(figures, indent=1))
        return 0
    if chosen.make_reference:
        if len(chosen.reference) != 1:
            parser.error("--make-reference needs --reference FILE, the file to write.")
        for name in ("backbones", "kernels"):
            sys.path.insert(0, str(ROOT / name))
        make_reference(chosen.make_reference, chosen.reference[0])
        return 0
    if len(chosen.reference) not in (0, len(chosen.model)):
        parser.error("give one --reference for each --model, in the same order, or none.")
    if unknown := sorted(set(chosen.only.split(",")) - set(KINDS)):
        parser.error(f"there is no kind of part {', '.join(unknown)}: choose from {','.join(KINDS)}.")
    references = chosen.reference or [None] * len(chosen.model)
    waves = parts(list(zip(chosen.model, references, strict=True)), chosen.load, chosen.only.split(","))
    return 0 if run_all(waves, chosen.out, chosen.limit) else 1


if __name__ == "__main__":
    sys.exit(main())

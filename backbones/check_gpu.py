"""Check the served Hymba on a CUDA machine in one go, and time it; every part runs even when others fail.

    python backbones/check_gpu.py --make-reference MODEL --reference ref.json      (anywhere, without vLLM)
    python backbones/check_gpu.py --model MODEL --reference ref.json --out DIR     (on the GPU machine)

Run it from the root of a checkout, with vLLM, torch and transformers importable; nothing is fetched. Without
``--model`` the golden checkpoint of the tests is checked alone. Parts run in processes of their own, the checks side
by side and the timing alone at the end; the verdict of each is a row of the table and an entry of ``check_gpu.json``.
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

from gpu_parts import make_reference, part_golden, part_kernels, part_model, part_speed

ROOT = Path(__file__).resolve().parents[1]
GRAPHS = ("none", "full_decode_only", "full_and_piecewise")

# What a machine without the package `wrapt` needs of it: hooks run at once.
_WRAPT = """
import importlib
def register_post_import_hook(hook, name):
    hook(importlib.import_module(name))
"""


def parts(model: Path | None, reference: Path | None) -> tuple[list[list[str]], list[list[str]]]:
    """Names and arguments of the checks, which run together, and of the timings, which run one by one."""
    checks = [["kernels"], *(["golden", graphs] for graphs in GRAPHS)]
    timings: list[list[str]] = []
    if model is not None:
        if reference is not None:
            checks += [["model", str(model), str(reference), dtype] for dtype in ("float32", "bfloat16")]
        timings = [["speed", str(model), "bfloat16", "full_and_piecewise"], ["speed", str(model), "float32", "none"]]
    return checks, timings


def run_part(words: list[str]) -> dict[str, Any]:
    """Run one part here and return its figures, or the traceback."""
    functions: dict[str, Callable[..., dict[str, Any]]] = {
        "kernels": part_kernels,
        "golden": part_golden,
        "model": lambda model, reference, dtype: part_model(Path(model), Path(reference), dtype),
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


def launch(words: list[str], out: Path, scratch: Path) -> tuple[subprocess.Popen[bytes], Path, Path]:
    """Start a part in a process; returns it, where its figures will be, and its log."""
    stem = "-".join(Path(word).name for word in words)
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


def run_all(model: Path | None, reference: Path | None, out: Path, limit_s: float) -> bool:
    """Run all parts, print the table and the errors, write ``check_gpu.json``; true when all passed."""
    out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp())
    began = time.time()
    checks, timings = parts(model, reference)
    report: dict[str, Any] = {}

    def finish(words: list[str], running: tuple[subprocess.Popen[bytes], Path, Path], deadline: float) -> None:
        name = " ".join(Path(word).name for word in words)
        report[name] = collect(*running, deadline)
        (out / "check_gpu.json").write_text(json.dumps(report, indent=1))
        figures = {key: value for key, value in report[name].items() if key not in ("passed", "error")}
        verdict = "passed" if report[name]["passed"] else "FAILED"
        print(f"{verdict}  {name}  after {time.time() - began:.0f} s  {json.dumps(figures)}", flush=True)
        if "error" in report[name]:
            print(report[name]["error"], flush=True)

    running = [(words, launch(words, out, scratch)) for words in checks]
    for words, started in running:
        finish(words, started, began + 0.7 * limit_s)
    for words in timings:
        finish(words, launch(words, out, scratch), began + limit_s)
    return all(figures["passed"] for figures in report.values())


def main() -> int:
    """Parse the arguments and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a Hymba model")
    parser.add_argument("--reference", type=Path, help="its float32 figures, from --make-reference")
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
        if chosen.reference is None:
            parser.error("--make-reference needs --reference FILE, the file to write.")
        for name in ("backbones", "kernels"):
            sys.path.insert(0, str(ROOT / name))
        make_reference(chosen.make_reference, chosen.reference)
        return 0
    return 0 if run_all(chosen.model, chosen.reference, chosen.out, chosen.limit) else 1


if __name__ == "__main__":
    sys.exit(main())

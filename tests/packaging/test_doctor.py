"""nlrl doctor: each problem found, named, and given a remedy."""

import io
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from nlrl import doctor, machine
from nlrl.doctor import Check, exit_code
from nlrl.machine import Machine

CPU = Machine(gpu="", torch="2.13.0+cpu", cuda=False, vllm="0.32.0", vllm_source="a wheel")
GPU = Machine(gpu="NVIDIA H200", torch="2.13.0", cuda=True, vllm="0.32.0", vllm_source="a wheel")
NOTHING = Machine(gpu="", torch="", cuda=False, vllm="", vllm_source="")


def distributions(monkeypatch, **versions: str) -> None:
    monkeypatch.setattr(
        doctor, "find_distribution", lambda name: SimpleNamespace(version=versions[name]) if name in versions else None
    )


def test_a_problem_always_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "look_around", lambda: replace(CPU, vllm="0.24.0", cuda=True))
    monkeypatch.setattr(doctor, "entry_points", lambda group: [])
    monkeypatch.setenv("VLLM_PLUGINS", "")
    distributions(monkeypatch, torchvision="0.28.0")
    problems = [check for check in doctor.report(runs=tmp_path / "out") if check.ok is False]
    assert {"base packages", "vllm", "plugin", "VLLM_PLUGINS", "engine"} <= {check.name for check in problems}
    assert all(check.do for check in problems)


def test_the_exit_code_counts_problems_only():
    fine, remark, wrong = (Check("x", ok, "says") for ok in (True, None, False))
    assert exit_code([fine, remark]) == 0
    assert exit_code([fine, wrong]) == 1


@pytest.mark.parametrize(
    ("allowed", "ok", "remedy"),
    [
        (None, True, ""),
        ("nlrl", True, ""),
        ("other,nlrl", True, ""),
        ("other", False, "other,nlrl"),
        ("", False, "set it to nlrl"),
    ],
)
def test_vllm_plugins_may_hide_ours(allowed, ok, remedy):
    check = doctor._plugin_allowed(CPU, allowed)
    assert check.ok is ok
    assert remedy in check.do


def test_hiding_matters_only_where_vllm_is():
    assert doctor._plugin_allowed(NOTHING, "other").ok is None


@pytest.mark.parametrize(
    ("version", "ok"), [("0.31.9", False), ("0.32.0", True), ("0.33.1+cpu", True), ("0.34", False)]
)
def test_the_supported_range_of_vllm(version, ok):
    check = doctor._vllm(replace(CPU, vllm=version))
    assert check.ok is ok
    assert ok or "0.32" in check.do


@pytest.mark.parametrize(
    ("torch", "cuda", "torchvision", "ok"),
    [
        ("2.13.0+cpu", False, None, True),
        ("2.13.0+cpu", False, "0.28.0", False),
        ("2.13.0+cpu", False, "0.28.0+cpu", True),
        ("2.13.0", True, "0.28.0", True),
    ],
)
def test_torchvision_from_another_builder_breaks(monkeypatch, torch, cuda, torchvision, ok):
    distributions(monkeypatch, **({"torchvision": torchvision} if torchvision else {}))
    check = doctor._unwanted(replace(CPU, torch=torch, cuda=cuda))
    assert check.ok is ok
    assert ok or check.do == "pip uninstall torchvision"


@pytest.mark.parametrize(
    ("seen", "engine", "kernels"),
    [(CPU, "on the CPU", "torch reference"), (GPU, "on CUDA", "triton"), (NOTHING, "http", "none without torch")],
)
def test_which_engine_and_kernels_would_run(monkeypatch, seen, engine, kernels):
    monkeypatch.setattr(doctor, "module_exists", lambda name: True)
    assert engine in doctor._engine(seen).says
    assert kernels in doctor._kernels(seen).says


def test_a_cuda_build_without_a_driver_is_a_problem():
    assert doctor._engine(replace(CPU, torch="2.13.0", cuda=True)).ok is False


@pytest.mark.parametrize(
    ("version", "raced"),
    [((3, 40, 1), True), ((3, 44, 6), False), ((3, 50, 7), False), ((3, 51, 2), True), ((3, 51, 3), False)],
)
def test_the_wal_race_is_mentioned_where_it_is(version, raced):
    check = doctor._sqlite(version)
    assert check.ok is True
    assert ("race" in check.says) is raced


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("")
    check = doctor._run_folder(occupied / "out")
    assert check.ok is False
    assert str(occupied) in check.says


@pytest.mark.parametrize(
    ("line", "cuda"), [("cuda: Optional[str] = None", False), ("cuda: Optional[str] = '13.0'", True), ("", False)]
)
def test_torch_is_asked_for_its_build_without_being_imported(tmp_path, line, cuda):
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\n{line}\nhip: Optional[str] = None\n")
    torch = SimpleNamespace(locate_file=lambda name: tmp_path / "version.py")
    assert machine._for_cuda(torch) is cuda  # type: ignore[arg-type]


def test_hostile_names_cannot_steer_the_terminal(monkeypatch):
    hostile = Check("plugin[/x]", False, "name \x1b]52;c;aGk=\x07[up] \x1b[2J", "do [bold]this[/nothing]")
    monkeypatch.setattr(doctor, "report", lambda deep: [hostile])
    out = io.StringIO()
    doctor.main(console=Console(file=out, width=100))
    assert "\x1b" not in out.getvalue()
    assert "[up]" in out.getvalue()
    assert "do [bold]this[/nothing]" in out.getvalue()
    assert "1 to fix" in out.getvalue()


def test_it_answers_at_once_and_imports_nothing_heavy():
    code = (
        "import sys; from nlrl.doctor import main; main();"
        "print('loaded:', *(n for n in ('torch', 'vllm', 'transformers', 'triton') if n in sys.modules))"
    )
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert time.perf_counter() - begun < 10, "two seconds on an idle machine"
    assert done.stdout.splitlines()[-1].strip() == "loaded:"

"""What is installed here, what would run, and what to do about each problem: `nlrl doctor`.

Without `deep` nothing heavy is imported: packages are looked up, not loaded, so a broken torch cannot break the doctor.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nlrl import __version__, registry
from nlrl.errors import NlrlError
from nlrl.machine import Machine, find_distribution, look_around, module_exists, required
from nlrl.safe_text import as_text

PLUGIN_GROUP, PLUGIN = "vllm.general_plugins", "nlrl"
UNWANTED_BESIDE_CPU_TORCH = ("torchvision", "torchaudio", "torchcodec")
_INSTALL = "pip install 'nlrl[cpu]', or 'nlrl[gpu]' on a machine with an NVIDIA GPU"
_FREE_BYTES = 200 * 2**20


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool | None
    """True: fine. False: something you asked for cannot work. None: worth knowing, no problem by itself."""
    says: str
    do: str = ""
    """What to do about it; empty when there is nothing to do."""


def report(deep: bool = False, runs: Path = Path("runs/out")) -> list[Check]:
    """Every check in the order a reader needs them; `deep` also imports vLLM and asks its registry."""
    machine = look_around()
    checks = [
        _python(),
        _base_packages(),
        _vllm(machine),
        _torch(machine),
        _unwanted(machine),
        _training_packages(),
        _gpu(machine),
        _plugin_installed(machine),
        _plugin_allowed(machine, os.environ.get("VLLM_PLUGINS")),
        *(_architecture(backbone) for backbone in registry.names("backbone")),
        *(_boxed_model(backbone) for backbone in registry.names("backbone")),
        _engine(machine),
        _kernels(machine),
        _hub(),
        _run_folder(runs),
        _sqlite(sqlite3.sqlite_version_info),
    ]
    if deep and machine.vllm:
        checks += _ask_vllm()
    return checks


def exit_code(checks: Iterable[Check]) -> int:
    """1 when something is wrong, else 0."""
    return int(any(check.ok is False for check in checks))


def main(deep: bool = False, console: Console | None = None) -> list[Check]:
    """Print the report and return it."""
    checks = report(deep)
    console = console or Console(highlight=False)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    marks = {True: ("ok", "green"), False: ("no", "bold red"), None: ("-", "dim")}
    for check in checks:
        mark, style = marks[check.ok]
        table.add_row(as_text(mark, style), as_text(check.name), as_text(check.says))
        if check.do:
            table.add_row("", "", as_text(f"-> {check.do}", "yellow" if check.ok is False else "dim"))
    console.print(table)
    problems = sum(check.ok is False for check in checks)
    console.print(as_text(f"nlrl {__version__}: " + (f"{problems} to fix" if problems else "nothing to fix")))
    return checks


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= (3, 15):
        return Check("python", None, f"{found}; vLLM has no builds for it", "use Python 3.11 to 3.14 to serve models")
    return Check("python", True, found)


def _base_packages() -> Check:
    missing = _missing(required(""))
    if missing:
        return Check("base packages", False, f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Check("base packages", True, "all there: games, method, engines http and oracle, terminal")


def _training_packages() -> Check:
    missing = _missing(required("train"))
    if missing:
        return Check("training", None, f"not installed: {', '.join(missing)}", "pip install 'nlrl[train]' to train")
    return Check("training", True, "all there")


def _vllm(machine: Machine) -> Check:
    if not machine.vllm:
        return Check("vllm", None, "not installed; the http and oracle engines run without it", _INSTALL)
    supported = registry.resolve("nlrl_backbones.common.vllm_compat:supported")
    wanted = registry.resolve("nlrl_backbones.common.vllm_compat:SUPPORTED_TEXT")
    says = f"{machine.vllm}, {machine.vllm_source}"
    if not supported(machine.vllm):
        return Check("vllm", False, f"{says}; supported is {wanted}", f"install a vLLM in the range {wanted}")
    return Check("vllm", True, says)


def _torch(machine: Machine) -> Check:
    if not machine.torch:
        return Check("torch", False if machine.vllm else None, "not installed", _INSTALL)
    if machine.cuda and not machine.gpu:
        return Check(
            "torch",
            None,
            f"{machine.torch}, built for CUDA, on a machine without an NVIDIA driver",
            "for a smaller one: pip install torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu",
        )
    if machine.gpu and not machine.cuda:
        return Check("torch", None, f"{machine.torch}, which does not use the GPU", "make clean, then make DEVICE=gpu")
    return Check("torch", True, f"{machine.torch}, built for {'CUDA' if machine.cuda else 'the CPU'}")


def _unwanted(machine: Machine) -> Check:
    name = "torch's companions"
    found = {part: d.version for part in UNWANTED_BESIDE_CPU_TORCH if (d := find_distribution(part))}
    listed = ", ".join(f"{part} {version}" for part, version in found.items())
    if not found:
        return Check(name, True, "torchvision, torchaudio and torchcodec are absent, and nothing here needs them")
    if not machine.torch or machine.cuda or all("+cpu" in version for version in found.values()):
        return Check(name, True, f"{listed}, from the same builder as torch")
    return Check(
        name,
        False,
        f"{listed}: built for another torch than {machine.torch}; importing them fails, and vLLM with them",
        f"pip uninstall {' '.join(found)}",
    )


def _gpu(machine: Machine) -> Check:
    if machine.gpu:
        return Check("gpu", True, machine.gpu)
    return Check("gpu", None, "no NVIDIA driver; models run on the CPU")


def _plugin_installed(machine: Machine) -> Check:
    name = "plugin"
    points = [point for point in entry_points(group=PLUGIN_GROUP) if point.name == PLUGIN]
    if not points:
        return Check(
            name,
            False if machine.vllm else None,
            f"vLLM cannot see our models: no entry point '{PLUGIN}' in group {PLUGIN_GROUP}",
            "install the project itself, not only its folders on the path: pip install -e .",
        )
    if not module_exists(points[0].module):
        return Check(name, False, f"its module {points[0].module} cannot be found", "reinstall nlrl")
    return Check(name, True, f"vLLM sees it as {PLUGIN_GROUP}: {points[0].name} = {points[0].value}")


def _plugin_allowed(machine: Machine, allowed: str | None) -> Check:
    """`allowed` is VLLM_PLUGINS: a comma-separated list of entry-point names; unset lets all load, empty none."""
    name = "VLLM_PLUGINS"
    if allowed is None:
        return Check(name, True, "not set, so vLLM loads every plugin")
    if PLUGIN in allowed.split(","):
        return Check(name, True, f"'{allowed}' lets ours load")
    wanted = ",".join(filter(None, (allowed, PLUGIN)))
    return Check(
        name,
        False if machine.vllm else None,
        f"'{allowed}' hides our plugin; vLLM would call our architectures unsupported",
        f"unset VLLM_PLUGINS, or set it to {wanted}",
    )


def _architecture(backbone_id: str) -> Check:
    backbone = registry.load("backbone", backbone_id)
    parts = [part for part in (backbone.config, backbone.model, backbone.vllm_model) if part]
    lost = [module for module in (part.partition(":")[0] for part in parts) if not module_exists(module)]
    if lost:
        return Check(f"model {backbone_id}", False, f"cannot be found: {', '.join(lost)}", "reinstall nlrl")
    if backbone.model:
        runs = "for transformers and for vLLM"
    else:
        runs = "transformers' own, served by us" if parts else "transformers' and vLLM's own"
    return Check(f"model {backbone_id}", True, f"{backbone.architecture}, {runs}")


def _boxed_model(backbone_id: str) -> Check:
    name = f"box {backbone_id}"
    if not registry.load("backbone", backbone_id).boxed:
        return Check(name, True, "none; give --backbone a folder or a hub id")
    try:
        folder = registry.resolve_model(backbone_id).path
    except NlrlError as error:
        return Check(name, False, str(error), "reinstall nlrl, or give --backbone a folder")
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder else 0
    if not folder or not size:
        return Check(name, False, f"{backbone_id} has no weights in the box", "reinstall nlrl")
    return Check(name, True, f"{folder.name}, {size / 1e6:.1f} MB of weights")


def _engine(machine: Machine) -> Check:
    if machine.vllm and machine.torch:
        if machine.cuda and not machine.gpu:
            return Check(
                "engine",
                False,
                "vllm would be used, but this build is for CUDA and there is no NVIDIA driver",
                "make clean, then make DEVICE=cpu; or --engine http",
            )
        return Check("engine", True, f"vllm, in process, on {'CUDA' if machine.cuda else 'the CPU'}")
    if machine.torch and module_exists("transformers"):
        return Check("engine", None, "no vllm; --engine torch works and is slow", _INSTALL)
    return Check("engine", None, "no vllm; --engine http --base-url URL and --engine oracle work", _INSTALL)


def _kernels(machine: Machine) -> Check:
    if not machine.torch:
        return Check("kernels", None, "none without torch")
    if machine.gpu and machine.cuda and not module_exists("triton"):
        return Check("kernels", False, "triton is missing, so the slow torch reference would run", "pip install triton")
    if machine.gpu and machine.cuda:
        return Check("kernels", True, "triton")
    return Check("kernels", True, "the torch reference; triton runs on CUDA only")


def _hub() -> Check:
    if not module_exists("huggingface_hub"):
        return Check("model hub", None, "huggingface_hub is not installed; the model in the box needs no hub", _INSTALL)
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        return Check("model hub", None, "HF_HUB_OFFLINE is set: hub models come from the local cache only")
    return Check("model hub", True, "asked only when --backbone is a hub id")


def _run_folder(runs: Path) -> Check:
    there = next(folder for folder in (runs.absolute(), *runs.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Check("run folder", False, f"cannot write in {there}", "run from another folder, or pass --runs FOLDER")
    if (free := shutil.disk_usage(there).free) < _FREE_BYTES:
        return Check("run folder", False, f"{free / 2**20:.0f} MiB free at {there}", "make room, or pass --runs FOLDER")
    return Check("run folder", True, f"{runs}, {free / 2**30:.0f} GiB free")


def _sqlite(version: Sequence[int]) -> Check:
    found = ".".join(map(str, version))
    # https://sqlite.org/wal.html: the WAL-reset race of 3.7.0 to 3.51.2, mended also in 3.44.6 and 3.50.7.
    mended = tuple(version) >= (3, 51, 3) or tuple(version) in {(3, 44, 6), (3, 50, 7)}
    return Check("sqlite", True, found if mended else f"{found}; its WAL race needs two writers, and a run has one")


def _ask_vllm() -> list[Check]:
    from nlrl.engine.vllm_setup import prepare_environment

    prepare_environment()
    try:
        from vllm.model_executor.models import ModelRegistry
        from vllm.platforms import current_platform
        from vllm.plugins import load_general_plugins

        load_general_plugins()
        known = set(ModelRegistry.get_supported_archs())
        registry.resolve("nlrl_backbones.common.vllm_compat:check_signatures")()
    except Exception as error:  # whatever a foreign package raises at import is the finding
        says = f"cannot be imported: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return [Check("vllm, asked", False, says, "see the lines above; else reinstall vLLM")]
    checks = [Check("vllm, asked", True, f"it imports, and runs on '{current_platform.device_type}'")]
    for backbone_id in registry.names("backbone"):
        architecture = registry.load("backbone", backbone_id).architecture
        listed = architecture in known
        checks.append(
            Check(
                f"vllm: {backbone_id}",
                listed,
                f"{architecture} is {'registered' if listed else 'not registered'}",
                "" if listed else "see 'plugin' and 'VLLM_PLUGINS' above",
            )
        )
    return checks


def _missing(names: Iterable[str]) -> list[str]:
    return [name for name in names if find_distribution(name) is None]

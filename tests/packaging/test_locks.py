"""The lock files: complete, hashed, in step with pyproject.toml, and free of any machine's own indexes."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ("cpu", "gpu", "dev", "torch-cpu")
UNWANTED_BESIDE_CPU_TORCH = {"torchvision", "torchaudio", "torchcodec"}


def text(lock: str) -> str:
    return (ROOT / "requirements" / f"{lock}.lock").read_text()


def entries(lock: str) -> list[tuple[Requirement, list[str]]]:
    """Each pinned requirement with its hashes."""
    joined = text(lock).replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    parts = [line.split("--hash=") for line in lines]
    return [(Requirement(part[0]), [digest.strip() for digest in part[1:]]) for part in parts]


def versions(lock: str) -> dict[str, set[str]]:
    """Versions by name; a name may have several, for several Pythons."""
    found: dict[str, set[str]] = {}
    for requirement, _ in entries(lock):
        found.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier)[2:])
    return found


def direct(*extras: str) -> list[Requirement]:
    lines = [*PROJECT["dependencies"]]
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_is_pinned_and_hashed(lock):
    assert entries(lock)
    loose = [
        str(requirement)
        for requirement, hashes in entries(lock)
        if not re.fullmatch(r"==[^,*]+", str(requirement.specifier))
        or not hashes
        or not all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes)
    ]
    assert not loose, loose


@pytest.mark.parametrize("lock", LOCKS)
def test_no_index_or_folder_is_written_down(lock):
    assert not re.search(r"://|--index|--extra|--find-links|--trusted| @ |file:", text(lock))


@pytest.mark.parametrize(("lock", "extras"), [("cpu", ("cpu", "train")), ("gpu", ("gpu", "train")), ("dev", ("dev",))])
def test_every_direct_dependency_is_locked_within_its_range(lock, extras):
    locked = versions(lock) | (versions("torch-cpu") if lock == "cpu" else {})
    for requirement in direct(*extras):
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{requirement} is missing from {lock}.lock: run make lock"
        for version in locked[name]:
            assert requirement.specifier.contains(Version(version), prereleases=True), f"{requirement}: {version}"


def test_the_cpu_environment_has_neither_cuda_nor_what_breaks_beside_its_torch():
    assert versions("torch-cpu") == {"torch": {"2.13.0+cpu"}}
    unwanted = UNWANTED_BESIDE_CPU_TORCH | {"torch", "triton"}
    found = [name for name in versions("cpu") if name in unwanted or name.startswith(("nvidia-", "cuda-"))]
    assert not found, found


def test_the_tools_agree_with_both_environments():
    tools = versions("dev")
    for lock in ("cpu", "gpu"):
        shared = versions(lock)
        differing = [name for name in tools.keys() & shared.keys() if tools[name] != shared[name]]
        assert not differing, (lock, differing)


def test_what_builds_the_project_is_locked():
    for lock in ("cpu", "gpu"):
        assert {"hatchling", "editables"} <= versions(lock).keys()

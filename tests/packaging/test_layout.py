"""What the checkout must look like for imports, wheels and strangers."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "nlrl": ROOT / "nlrl",
    "nlrl_backbones": ROOT / "backbones" / "nlrl_backbones",
    "nlrl_envs": ROOT / "envs" / "nlrl_envs",
    "nlrl_kernels": ROOT / "kernels" / "nlrl_kernels",
    "nlrl_prompts": ROOT / "prompts" / "nlrl_prompts",
}


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize("folder", ["backbones", "envs", "kernels", "prompts", "runs", "tests"])
def test_an_outer_folder_is_no_package(folder):
    # kernels/__init__.py would shadow Hugging Face's `kernels`, which transformers imports, from the root.
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_typed(package):
    assert (PACKAGES[package] / "__init__.py").is_file()
    assert (PACKAGES[package] / "py.typed").is_file()


def test_the_licence_is_there_in_full():
    text = (ROOT / "LICENSE").read_text()
    assert text.split("\n", 1)[0].strip() == "Apache License"
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_readme_gives_two_commands():
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert blocks, "README.md has no block of commands"
    commands = [line.partition("#")[0].strip() for line in blocks[0].splitlines()]
    assert [command for command in commands if command] == ["make demo", "make test"]


def test_no_file_names_a_path_of_one_machine():
    folders = "|".join(["work", "root", "opt", "home"])
    machine_path = re.compile(rf"(?<![\w./~-])/(?:{folders})/[\w.-]+".encode())
    found = []
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" in content[:8192]:
            continue
        found += [f"{path.relative_to(ROOT)}: {match.decode()}" for match in machine_path.findall(content)]
    assert not found, found


def test_ignored_patterns_cannot_hide_a_package_folder():
    # hatchling obeys .gitignore: a bare `out/` would drop a package's own out/ from the wheel.
    lines = (ROOT / ".gitignore").read_text().split()
    folders = [line for line in lines if line.endswith("/") and not line.startswith("/")]
    assert set(folders) <= {"__pycache__/", "*.egg-info/", ".pytest_cache/", ".ruff_cache/", ".hypothesis/"}
    assert "/runs/out/" in lines

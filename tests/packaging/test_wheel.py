"""The wheel as a stranger gets it: built, unpacked into a fresh environment, and used far from the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {
    "nlrl": ROOT / "nlrl",
    "nlrl_backbones": ROOT / "backbones" / "nlrl_backbones",
    "nlrl_envs": ROOT / "envs" / "nlrl_envs",
    "nlrl_kernels": ROOT / "kernels" / "nlrl_kernels",
    "nlrl_prompts": ROOT / "prompts" / "nlrl_prompts",
}

SMOKE = '''
import multiprocessing
from importlib.metadata import entry_points
from pathlib import Path


def load_plugin(_):
    """What vLLM does in each of its processes, short of calling it."""
    (point,) = [p for p in entry_points(group="vllm.general_plugins") if p.name == "nlrl"]
    return callable(point.load())


def main():
    import nlrl, nlrl_backbones, nlrl_envs, nlrl_kernels, nlrl_prompts
    from nlrl import config, registry

    here = Path(__file__).parent
    for package in (nlrl, nlrl_backbones, nlrl_envs, nlrl_kernels, nlrl_prompts):
        assert Path(package.__file__).is_relative_to(here), package.__file__
    for kind in ("env", "backbone", "engine", "prompt set"):
        assert registry.names(kind), kind
        for name in registry.names(kind):
            registry.load(kind, name)
    for backbone in nlrl_backbones.BACKBONES.values():
        for reference in filter(None, (backbone.config, backbone.model)):
            registry.resolve(reference)
    for prompts in nlrl_prompts.available():
        shared = (nlrl_prompts.ROOT / prompts / "_shared").is_dir()
        for env in nlrl_envs.ENVS:
            if shared or (nlrl_prompts.ROOT / prompts / env).is_dir():
                assert nlrl_prompts.load(prompts, env)
    assert "maze" in config.recipes()
    for recipe in config.recipes():
        assert config.load_config(recipe, {})
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(load_plugin, [0]) == [True]
    print("all resolved")


if __name__ == "__main__":
    main()
'''


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling", reason="the wheel is built with hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def fresh_python(wheel, tmp_path_factory) -> Path:
    """A Python whose site-packages hold the wheel, and by a .pth the dependencies of this environment.

    Path files inside such a folder are not read, so this environment's editable install does not show through.
    """
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def shipped(folder: Path) -> set[Path]:
    return {p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def test_the_wheel_holds_every_file_of_the_five_packages(wheel):
    found = contents(wheel)
    for package, folder in SOURCES.items():
        wanted = {f"{package}/{path.relative_to(folder).as_posix()}" for path in shipped(folder)}
        assert wanted <= found, wanted - found


def test_the_wheel_holds_nothing_else(wheel):
    assert {name.partition("/")[0].partition("-")[0] for name in contents(wheel)} == set(SOURCES)
    assert not [name for name in contents(wheel) if "__pycache__" in name or name.startswith("nlrl/out")]


def test_recipes_and_licence_travel_along(wheel):
    found = contents(wheel)
    runs = ROOT / "runs"
    found_here = (*runs.glob("*.toml"), *runs.glob("reproduce/*.toml"))
    recipes = {f"nlrl/_recipes/{path.relative_to(runs).as_posix()}" for path in found_here}
    assert recipes
    assert recipes == {name for name in found if name.startswith("nlrl/_recipes/")}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in found)


def test_the_entry_points_are_ours(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
        text = archive.read(name).decode()
    assert "nlrl = nlrl.cli:main" in text
    assert "[vllm.general_plugins]\nnlrl = nlrl_backbones.vllm_plugin:register" in text


def test_the_installed_wheel_works_away_from_the_checkout(fresh_python):
    (site,) = fresh_python.parent.parent.glob("lib/python*/site-packages")
    script = site / "smoke.py"
    script.write_text(SMOKE)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(fresh_python), str(script)],
        cwd=fresh_python.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "all resolved"

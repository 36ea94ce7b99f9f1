"""Who may import whom: kernels below backbones, games and prompts on their own, the method above, no cycles."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
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
BELOW = {
    "nlrl_kernels": set(),
    "nlrl_backbones": {"nlrl_kernels"},
    "nlrl_envs": set(),
    "nlrl_prompts": set(),
    "nlrl": {"nlrl_envs", "nlrl_prompts", "nlrl_backbones"},
}
# Within nlrl, only these know that there are backbones, torch or vLLM.
REACHES_BACKBONES = (
    r"nlrl\.(registry|serve|serving|engine\.\w+|pretrain(\.\w+)?|distill\.(training|weights|student)|baselines\.loading"
    r"|claims\.(race|probes|binarised))"
)
REACHES_TORCH = (
    r"nlrl\.(engine\.(torch|local|vllm\w*)|pretrain(\.\w+)?|distill\.(dataset|training|weights|student|processes)"
    r"|baselines\.(loading|move_logits|ppo|grpo)|claims\.(streams|race|probes|binarised|__main__))"
)
REACHES_VLLM = r"nlrl\.(doctor|serve|serving|engine\.vllm\w*)"
# The method itself: it knows games, prompts and the engine protocol, but no engine, store or terminal.
METHOD = (
    r"nlrl\.(types|errors|parse|policy|iterate|stages|knobs|agents|play|learn|ask|values(\.\w+)?|operators(\.\w+)?)"
)


FOLDERS = {
    ".".join(path.parent.relative_to(folder.parent).parts)
    for folder in PACKAGES.values()
    for path in folder.rglob("__init__.py")
}


def modules(package: str) -> Iterator[tuple[str, ast.Module]]:
    folder = PACKAGES[package]
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def imported(name: str, tree: ast.AST, *, deep: bool = True) -> set[str]:
    """Dotted names the module `name` imports; `deep` counts the imports inside functions too."""
    package = name if name in FOLDERS else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(tree) if deep else at_import_time(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (source, node.module)))
            found |= {f"{source}.{alias.name}" for alias in node.names} | {source}
    return found


def at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: not function bodies, not `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_import_time(child)


def tops(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_lies_below_it(package):
    above = set(PACKAGES) - BELOW[package] - {package}
    wrong = {name: extra for name, tree in modules(package) if (extra := tops(imported(name, tree)) & above)}
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("heavy", "allowed"),
    [
        ({"nlrl_backbones"}, REACHES_BACKBONES),
        ({"torch", "transformers", "triton"}, REACHES_TORCH),
        ({"vllm"}, REACHES_VLLM),
    ],
)
def test_heavy_things_are_reached_in_few_places(heavy, allowed):
    wrong = {
        name: extra
        for name, tree in modules("nlrl")
        if (extra := tops(imported(name, tree)) & heavy) and not re.fullmatch(allowed, name)
    }
    assert not wrong, wrong


def test_backbones_meet_vllm_only_in_files_that_say_so():
    wrong = [
        name
        for name, tree in modules("nlrl_backbones")
        if "vllm" in tops(imported(name, tree)) and not name.rpartition(".")[2].startswith("vllm_")
    ]
    assert not wrong, wrong


def test_the_method_knows_no_engine_store_or_terminal():
    barred = re.compile(r"nlrl\.(engine\.(?!base)\w+|store\w*|terminal|cli|run|session|doctor)")
    wrong = {
        name: extra
        for name, tree in modules("nlrl")
        if re.fullmatch(METHOD, name) and (extra := {found for found in imported(name, tree) if barred.match(found)})
    }
    assert not wrong, wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_make_no_cycle(package):
    trees = dict(modules(package))
    graph = {}
    for name, tree in trees.items():
        needed = {found for found in imported(name, tree, deep=False) if found in trees and found != name}
        # `from package import module` needs the module; the package itself is merely passed through.
        graph[name] = {found for found in needed if not name.startswith(f"{found}.")}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle

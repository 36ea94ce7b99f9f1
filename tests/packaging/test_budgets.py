"""Size budgets on the tail: a file, function or signature that outgrows them wants to be two."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("nlrl", "backbones", "envs", "kernels", "prompts", "tests")

FOREIGN_SIGNATURES = {
    ("backbones/nlrl_backbones/bimamba/model.py", "forward"): "transformers calls it with these names",
    ("backbones/nlrl_backbones/diff_transformer/model.py", "forward"): "transformers calls it with these names",
    ("backbones/nlrl_backbones/hymba/model.py", "forward"): "transformers calls it with these names",
    ("backbones/nlrl_backbones/ngpt/model.py", "forward"): "transformers calls it with these names",
}


def budgets(path: str) -> tuple[int, int, int]:
    """Lines of a file, lines of a function, parameters of a function."""
    if path.startswith("kernels/") or Path(path).name.startswith("vllm_"):
        return 500, 120, 25
    if path.startswith("tests/"):
        return 500, 60, 10
    return 350, 60, 7


def modules() -> Iterator[tuple[str, str]]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def functions(text: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    every = function.args
    names = [arg.arg for arg in (*every.posonlyargs, *every.args, *every.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def is_launch_or_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    # A jitted kernel takes a pointer and a stride an axis; an option of a command is a parameter of its function.
    decorators = {ast.unparse(decorator).partition("(")[0] for decorator in function.decorator_list}
    return bool(decorators & {"triton.jit", "njit", "numba.njit", "app.command"})


def test_files_stay_short():
    long = {path: lines for path, text in modules() if (lines := len(text.splitlines())) > budgets(path)[0]}
    assert not long, long


def test_functions_stay_short():
    long = {
        f"{path}:{function.name}": lines
        for path, text in modules()
        for function in functions(text)
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > budgets(path)[1]
    }
    assert not long, long


def test_signatures_stay_short():
    long = {
        f"{path}:{function.name}": count
        for path, text in modules()
        for function in functions(text)
        if (count := parameters(function)) > budgets(path)[2]
        and not is_launch_or_command(function)
        and (path, function.name) not in FOREIGN_SIGNATURES
    }
    assert not long, long

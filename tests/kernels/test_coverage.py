"""No kernel is left out: each runs in Triton's interpreter, and each is compiled for sm_90."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import nlrl_kernels
from nlrl_kernels.bench.case import Size
from nlrl_kernels.bench.runner import planned

pytest.importorskip("triton")

HERE = Path(__file__).parent
SOURCES = [path for path in Path(nlrl_kernels.__file__).parent.rglob("*.py") if path.parent.name != "bench"]
ELSEWHERE = {"_conv_rows", "unpack_rows"}
"""Not in the benchmark's tiny cases: `test_causal_conv.py` and `test_binary_triton.py` run them."""


def names(tree: ast.AST) -> set[str]:
    """Every name and attribute."""
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return found | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def jitted(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(each) for each in node.decorator_list):
            yield node


def launched() -> set[str]:
    """Jitted functions that no other jitted function calls: those that code of the host launches."""
    functions = [function for path in SOURCES for function in jitted(ast.parse(path.read_text(encoding="utf-8")))]
    called = {name for function in functions for statement in function.body for name in names(statement)}
    return {function.name for function in functions} - called


def test_there_are_kernels_to_look_for():
    assert {"attend", "combine", "residual_forward", "normalize_all", "_conv_rows"} <= launched()
    assert "_normalize_rows" not in launched()


def test_every_kernel_is_compiled_for_sm_90():
    compiled = set()
    for path in HERE.glob("compile_*.py"):
        compiled |= names(ast.parse(path.read_text(encoding="utf-8")))
    assert launched() - compiled == set()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is no interpreter on a GPU")
def test_every_kernel_runs_in_the_interpreter(monkeypatch):
    from triton.runtime.interpreter import GridExecutor

    run, ran = GridExecutor.__call__, set()
    monkeypatch.setattr(GridExecutor, "__call__", lambda self, *a, **k: ran.add(self.fn.__name__) or run(self, *a, **k))
    with nlrl_kernels.use_implementation("triton"):
        for plan in planned(Size("cpu", tiny=True)):
            plan.build().run()
    assert launched() - ran <= ELSEWHERE

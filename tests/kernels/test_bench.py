"""The benchmark without a GPU: every case is checked on tiny shapes, and no time is reported."""

import json

import pytest
import torch

import nlrl_kernels
from nlrl_kernels.bench import report, sweep
from nlrl_kernels.bench.__main__ import main
from nlrl_kernels.bench.case import Case, Plan, Size
from nlrl_kernels.bench.runner import planned, run_all, run_one
from nlrl_kernels.bench.timing import Ceilings, Timing
from nlrl_kernels.testing import assert_near

pytest.importorskip("triton")

GPU = torch.cuda.is_available()
TINY = Size("cuda" if GPU else "cpu", tiny=True)
needs_no_gpu = pytest.mark.skipif(GPU, reason="times are reported where there is a GPU")


@needs_no_gpu
@pytest.mark.parametrize("plan", planned(TINY), ids=lambda plan: f"{plan.kernel}: {plan.shape}")
def test_every_case_is_right_and_has_no_time(plan):
    result = run_one(plan, TINY, None)
    assert result.refused == "no GPU"
    assert result.errors
    assert result.moved > 0
    assert result.timing is None


def test_every_operator_has_a_case():
    convolution = {"causal_conv1d_varlen", "causal_conv1d_update"}  # measured within the served models
    operators = set(nlrl_kernels.__all__) - {"implementation_for", "use_implementation"} - convolution
    assert operators == {plan.kernel for plan in planned(TINY)} & operators


def plan_of(found, expected):
    case = Case(lambda: found, lambda: [("result", torch.tensor(found), torch.tensor(expected), 0.1)], 8)
    return Plan("made_up", "a shape", lambda: case)


@pytest.mark.parametrize("found", [[1.0, 2.5], [1.0, float("nan")], [1.0, 2.0, 3.0]], ids=str)
def test_a_wrong_kernel_is_refused(found):
    result = run_one(plan_of(found, [1.0, 2.0]), TINY, Ceilings(1.0, 1.0))
    assert result.timing is None
    assert result.refused is not None
    assert "result is wrong by" in result.refused


def test_a_case_that_checks_nothing_is_refused():
    case = Case(lambda: None, list, 8)
    assert run_one(Plan("made_up", "a shape", lambda: case), TINY, Ceilings(1.0, 1.0)).refused == "nothing was checked"


def test_a_kernel_that_stops_is_a_result():
    def stop():
        raise RuntimeError("out of | memory")

    refused = run_one(Plan("made_up", "a shape", stop), TINY, None).refused
    assert refused == "the kernel or its check stopped: RuntimeError: out of / memory"


@needs_no_gpu
def test_files_grow_with_each_case_and_say_what_the_limit_left_out(tmp_path, capsys):
    lines = run_all([plan_of([1.0], [1.0])] * 3, TINY, tmp_path, limit=60.0)
    for _ in range(2):
        next(lines)  # the header, the first case
    assert next(lines).startswith("| made_up |")
    written = list(tmp_path.glob("no-gpu-*.json"))
    assert len(written) == 1
    record = json.loads(written[0].read_text())
    assert record["left_out"] in (1, 2)
    assert record["results"][0]["errors"] == {"result": [0.0, 0.1]}
    assert "refused: no GPU" in written[0].with_suffix(".md").read_text()
    assert "3 cases were left out" in "\n".join(run_all([plan_of([1.0], [1.0])] * 3, TINY, tmp_path, limit=-1.0))


def test_a_row_has_shares_of_the_ceilings_and_ratios():
    slow = report.Alternative(Timing(6.0, 5.0, 7.0, False))
    absent = report.Alternative(None, "not here")
    timing = Timing(2.0, 1.9, 2.1, True)
    result = report.Result("k", "s", 4 * 10**9, 3 * 10**12, {}, timing, {"other": slow, "third": absent})
    line = report.row(result, Ceilings(copy=4e12, matmul=5e14))
    assert line == "| k | s | 2 | 4 | 3 | 50% | 300% | other: 6 (3.00x, eager); third: not here |"


def test_an_unknown_kernel_is_one_sentence_and_exit_code_2(capsys):
    assert main(["--kernels", "attention"]) == 2
    assert capsys.readouterr().err.startswith("There is no benchmark of 'attention': choose among binary_linear, ")


@needs_no_gpu
def test_the_command_writes_where_it_says(tmp_path, capsys):
    assert main(["--kernels", "binary_linear", "--quick", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.count("refused: no GPU") == 2
    assert str(tmp_path) in said


@needs_no_gpu
@pytest.mark.parametrize(
    ("kernel", "name"),
    [("diff_attention_varlen", "sdpa, composed"), ("diff_attention_paged", "two passes of our paged attention")],
)
def test_alternatives_compute_the_same_function(kernel, name, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    for plan in planned(TINY, [kernel]):
        with nlrl_kernels.use_implementation("triton"):
            case = plan.build()
            expected = case.run().clone()
            assert_near(case.alternatives[name]()(), expected, 1e-4)


@needs_no_gpu
def test_a_sweep_launches_with_the_tiles_it_names_and_puts_the_old_ones_back():
    from nlrl_kernels.diff_attention import triton_impl

    before = triton_impl.prefill_tile
    sizes, launched = triton_impl._sizes, []
    triton_impl._sizes = lambda width, width_v, tile, dtype: launched.append(tile) or sizes(width, width_v, tile, dtype)
    try:
        for what, version in (("prefill", 1), ("decode", 2), ("backward", 1)):
            tiles = (sweep.Tile(16, 16, 4, 1),) * (2 if what == "backward" else 1)
            ms, line = sweep.time_one((what, version, tiles), TINY, None)
            assert line.endswith("| no GPU")
            assert ms == float("inf")
            assert tiles[0] in launched
            launched.clear()
    finally:
        triton_impl._sizes = sizes
    assert triton_impl.prefill_tile is before
    assert sweep.main([]) == 2


def test_a_sweep_starts_from_todays_tiles_and_tries_each_once():
    tried = sweep.candidates(["prefill", "decode"])
    assert len(set(tried)) == len(tried)
    assert {what for what, _, _ in tried} == {"prefill", "decode"}
    assert tried[0] == ("prefill", 1, (sweep.triton_impl.prefill_tile(256, torch.bfloat16),))

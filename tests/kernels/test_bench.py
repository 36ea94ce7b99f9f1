"""The benchmark without a GPU: every case is checked on tiny shapes, and no time is reported."""

import json

import pytest
import torch

import nlrl_kernels
from nlrl_kernels.bench import goals, isolated, profile, report, sweep
from nlrl_kernels.bench.__main__ import main
from nlrl_kernels.bench.case import Case, Plan, Size
from nlrl_kernels.bench.runner import planned, run_all, run_one
from nlrl_kernels.bench.timing import Ceilings, Timing, ratio
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
def test_files_grow_with_each_case_and_say_what_the_limit_left_out(tmp_path):
    said, plans = [], [plan_of([1.0], [1.0])] * 3

    def stop_after_one_case(line):
        said.append(line)
        if len(said) == 4:  # the machine, the header, two cases
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(plans, TINY, tmp_path, limit=60.0, say=stop_after_one_case)
    assert said[2].startswith("| made_up |")
    (written,) = tmp_path.glob("no-gpu-*.json")
    record = json.loads(written.read_text())
    assert record["left_out"] == 2
    assert record["results"][0]["errors"] == {"result": [0.0, 0.1]}
    assert "refused: no GPU" in written.with_suffix(".md").read_text()
    said.clear()
    assert run_all(plans, TINY, tmp_path, limit=-1.0, say=said.append)
    assert "3 cases were left out" in "\n".join(said)


def test_a_row_has_shares_of_the_ceilings_and_ratios():
    slow = report.Alternative(Timing(6.0, 5.0, 7.0, False, 6.0))
    absent = report.Alternative(None, "not here")
    timing = Timing(2.0, 1.9, 2.1, True, 2.4)
    result = report.Result("k", "s", 4 * 10**9, 3 * 10**12, {}, timing, {"other": slow, "third": absent})
    line = report.row(result, Ceilings(copy=4e12, matmul=5e14))
    others = "other: 6 (2.50x, both from Python); third: not here"
    assert line == f"| k | s | 2 (1.9 .. 2.1) | 2.4 | 4 | 3 | 50% | 300% | {others} |"


def test_graphs_are_compared_with_graphs():
    ours, theirs = Timing(2.0, 1.0, 3.0, True, 4.0), Timing(6.0, 5.0, 7.0, True, 20.0)
    assert ratio(theirs, ours) == 3.0
    assert ratio(Timing(20.0, 20.0, 20.0, False, 20.0), ours) == 5.0


COPIED = goals.Goal("row", "kernel", "^8 rows", "copy", 0.8)
FLAT = goals.Goal("row", "kernel", "rows", "flat", 1.1)
FASTER = goals.Goal("row", "kernel", "rows", "faster", 2.0, "theirs")


def timed(shape, milliseconds, theirs=None, refused=None):
    timing = None if refused else Timing(milliseconds, milliseconds, milliseconds, True)
    others = {"theirs": report.Alternative(theirs and Timing(theirs, theirs, theirs, True))}
    return report.Result("kernel", shape, 10**9, 0, {}, timing, others, refused)


@pytest.mark.parametrize(
    ("goal", "results", "status", "found"),
    [
        (COPIED, [], "not measured", None),
        (COPIED, [timed("8 rows", 1.0)], "reached", 1.0),
        (COPIED, [timed("8 rows", 2.0)], "not reached", 0.5),
        (COPIED, [timed("8 rows", 2.0, refused="wrong by 1")], "not reached", None),
        (COPIED, [timed("8 rows", 2.0, refused="only checked")], "not measured", None),
        (FLAT, [timed("8 rows", 1.0)], "not measured", None),
        (FLAT, [timed("8 rows", 1.0), timed("9 rows", 1.05)], "reached", 1.05),
        (FLAT, [timed("8 rows", 1.0), timed("9 rows", 1.5)], "not reached", 1.5),
        (FASTER, [timed("8 rows", 1.0, 3.0)], "not measured", 3.0),  # one of two
        (FASTER, [timed("8 rows", 1.0, 3.0), timed("9 rows", 1.0, 2.5)], "reached", 2.5),
        (FASTER, [timed("8 rows", 1.0, 3.0), timed("9 rows", 1.0, 1.0)], "not reached", 1.0),
        (FASTER, [timed("8 rows", 1.0), timed("9 rows", 1.0, 2.0)], "not measured", 2.0),
    ],
)
def test_a_goal_is_held_against_the_worst_of_its_cases(monkeypatch, goal, results, status, found):
    monkeypatch.setattr(goals, "GOALS", (goal,))
    plans = [Plan("kernel", shape, pytest.fail) for shape in ("8 rows", "9 rows")]
    (verdict,) = goals.judge(plans, results, Ceilings(1e12, 1.0))
    assert (verdict.status, verdict.found) == (status, found)
    assert status in verdict.line


def test_every_goal_has_cases_and_one_of_each_comes_before_all_others():
    plans = planned(Size("cpu"))
    covered = [[plan for plan in plans if goal.covers(plan.kernel, plan.shape)] for goal in goals.GOALS]
    assert [goal for goal, of_goal in zip(goals.GOALS, covered, strict=True) if not of_goal] == []
    first = plans[: len({of_goal[0] for of_goal in covered})]
    assert all(set(of_goal) & set(first) for of_goal in covered)
    assert len(set(plans)) == len(plans)


def test_a_missed_goal_of_one_case_asks_for_its_profile(monkeypatch):
    monkeypatch.setattr(goals, "GOALS", (COPIED, FLAT))
    assert goals.missed(timed("8 rows", 2.0), Ceilings(1e12, 1.0)) == [COPIED]
    assert goals.missed(timed("8 rows", 1.0), Ceilings(1e12, 1.0)) == []


@pytest.mark.parametrize(
    ("registers", "warps", "shared", "expected"),
    [
        (32, 4, 0, 1.0),
        (64, 4, 0, 0.5),
        (255, 8, 0, 0.125),
        (40, 4, 0, 0.75),
        (32, 8, 100 * 1024, 0.25),
        (32, 1, 0, 0.5),
    ],
)
def test_occupancy_is_that_of_the_occupancy_tables(registers, warps, shared, expected):
    assert profile.occupancy(registers, warps, shared) == expected


def test_a_profile_names_each_launched_kernel_once(monkeypatch):
    from types import SimpleNamespace

    from triton.runtime.jit import JITFunction

    about = SimpleNamespace(name="attend", num_warps=4, shared=1024)
    compiled = SimpleNamespace(metadata=about, n_regs=128, n_spills=6)
    monkeypatch.setattr(JITFunction, "run", lambda self, *_, grid, warmup, **__: compiled)
    launch = JITFunction.run
    (found,) = profile.launches(lambda: [launch_with(JITFunction, grid=(3, 2), warmup=False) for _ in range(2)])
    assert str(found) == "attend: 6 programs of 4 warps, 128 registers, 6 spilled, 1024 bytes shared, occupancy 25%"
    assert JITFunction.run is launch


def launch_with(kind, **how):
    return kind.run(None, **how)


@pytest.mark.full
@needs_no_gpu
def test_a_case_that_kills_its_process_costs_only_itself(monkeypatch):
    plans = planned(TINY, ["binary"])[:1]
    killer = Plan("binary_linear", "no such shape", plans[0].build)  # a KeyError there ends the process
    first, second = isolated.results([killer, *plans], TINY, None, patience=60.0)
    assert first.is_wrong
    assert first.refused == "its process ended with code 1"
    assert second.refused == "no GPU"


def test_an_unknown_kernel_is_one_sentence_and_exit_code_2(capsys):
    assert main(["--only", "attention"]) == 2
    assert capsys.readouterr().err.startswith("There is no benchmark of 'attention': choose among binary, ")


@needs_no_gpu
def test_without_a_gpu_it_says_so_in_one_sentence_or_checks(tmp_path, capsys):
    assert main(["--only", "binary", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count(".") == 1
    assert main(["--only", "binary", "--check", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.count("refused: no GPU") == len(planned(TINY, ["binary"]))
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
            tiles = (triton_impl.Tile(16, 16, 4, 1),) * (2 if what == "backward" else 1)
            ms, line = sweep.time_one((what, version, tiles), TINY, None)
            assert line.endswith("| no GPU")
            assert ms == float("inf")
            assert tiles[0] in launched
            launched.clear()
    finally:
        triton_impl._sizes = sizes
    assert triton_impl.prefill_tile is before
    assert sweep.main([]) == 2


@needs_no_gpu
def test_every_setting_of_the_sphere_is_swept_and_put_back():
    from nlrl_kernels.hypersphere import triton_impl

    before = dict(triton_impl.SETTINGS)
    for what in (what for what in sweep.families() if what.startswith("sphere_")):
        tried = sweep.candidates([what])
        assert tried[0][2][0] in before.values()
        _, line = sweep.time_one(tried[-1], TINY, None)
        assert line.endswith("| no GPU")
        assert "entries=" in line
    assert before == triton_impl.SETTINGS


def test_a_sweep_starts_from_todays_tiles_and_tries_each_once():
    from nlrl_kernels.diff_attention import triton_impl

    tried = sweep.candidates(list(sweep.families()))
    assert len(set(tried)) == len(tried)
    assert {what for what, _, _ in tried} == set(sweep.families())
    of_prefill = sweep.candidates(["prefill"])
    assert of_prefill[0] == ("prefill", 1, (triton_impl.prefill_tile(256, torch.bfloat16),))

"""`nlrl bench train` without a GPU: its verdicts, and its steps on tiny models."""

import json

import pytest

pytest.importorskip("torch")

from nlrl_backbones import bench_train
from nlrl_backbones.bench_train import SHAPES, Timing, build, main, timed, verdicts
from nlrl_backbones.sizes import parameter_count


def timing(median: float, normalisation: float = 0.0) -> Timing:
    return Timing(median, median, median, normalisation)


@pytest.mark.parametrize(
    ("found", "step", "share"),
    [
        ({}, "not measured | ", "not measured | "),
        ({"ngpt": timing(100.0, 2.0)}, "not measured | ", "reached | 0.020"),
        ({"ngpt": timing(100.0, 2.0), "gpt": timing(95.0)}, "reached | 1.053", "reached | 0.020"),
        ({"ngpt": timing(100.0, 5.0), "gpt": timing(80.0)}, "not reached | 1.250", "not reached | 0.050"),
        # Each in its faster way.
        (
            {"ngpt": timing(99.0, 2.0), "ngpt, compiled": timing(84.0, 2.0), "gpt": timing(95.0),
             "gpt, compiled": timing(80.0)},
            "reached | 1.050", "reached | 0.024",
        ),
    ],
)  # fmt: skip
def test_a_step_is_held_against_that_of_the_gpt(found, step, share):
    _, _, *rows = verdicts(found, is_tiny=False)
    assert rows[0].endswith(f"| 1.1 | {step} |")
    assert rows[1].endswith(f"| 0.03 | {share} |")


def test_tiny_shapes_decide_nothing():
    rows = verdicts({"ngpt": timing(100.0, 2.0), "gpt": timing(95.0)}, is_tiny=True)
    assert all("not measured: tiny shapes" in row for row in rows[2:])


def test_the_models_have_the_same_matrices():
    counts = {kind: parameter_count(build(kind, SHAPES["tiny"]).config) for kind in ("gpt", "llama", "ngpt")}
    assert counts["llama"] == counts["gpt"]
    assert counts["ngpt"] == pytest.approx(counts["gpt"], rel=0.02)  # scales in place of norms


def test_a_step_trains_and_only_ngpt_is_normalised(monkeypatch):
    called = []
    monkeypatch.setattr(
        "nlrl_backbones.ngpt.train.normalize_vectors_", lambda *matrices: called.append(len(matrices[0]))
    )
    found = timed("ngpt", SHAPES["tiny"], "cpu", 2, is_compiled=False)
    assert len(called) == 1 + bench_train._WARM_UP + 2
    assert called[0] == 2 + 6 * 2
    assert 0 < found.low <= found.median <= found.high
    assert 0 < found.share < 1


@pytest.mark.parametrize("arguments", [["--shape", "124m"]])
def test_large_shapes_need_a_gpu(arguments, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(arguments) == 2
    assert capsys.readouterr().err == "There is no GPU here to train on: add --shape tiny to see that it runs.\n"


def test_results_are_written_and_what_fails_is_said(tmp_path, monkeypatch, capsys):
    def pretended(kind, *_, is_compiled):
        if is_compiled:
            raise RuntimeError("no compiler\nat all")
        return timing({"ngpt": 3.0, "gpt": 2.0, "llama": 2.0}[kind], 0.5)

    monkeypatch.setattr(bench_train, "timed", pretended)
    assert main(["--shape", "tiny", "--out", str(tmp_path)]) == 1
    (written,) = tmp_path.glob("*-train-tiny-*.json")
    record = json.loads(written.read_text())
    assert record["models"]["ngpt"]["median"] == 3.0
    assert record["failed"]["gpt, compiled"] == "no compiler"
    said = capsys.readouterr().out
    assert "| ngpt | 3.00 (3.00 .. 3.00) | 10,667 | 0.500 | 16.67% |" in said
    assert "| gpt, compiled | failed: no compiler |" in written.with_suffix(".md").read_text()

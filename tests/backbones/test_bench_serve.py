"""`nlrl bench serve` without a GPU: its shapes, its plan, its figures and verdicts, and a tiny run of it all."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nlrl_backbones.bench_serve import command, report
from nlrl_backbones.bench_serve.__main__ import main
from nlrl_backbones.bench_serve.models import ORDER, write_model
from nlrl_backbones.bench_serve.workloads import FULL, GOALS, TINY, WHOLE, Workload, chosen
from nlrl_backbones.sizes import cache_size, parameter_count


def configuration(name: str, folder: Path, *, tiny: bool = False) -> Any:
    from transformers import AutoConfig

    import nlrl_backbones  # noqa: F401  registers the architectures

    return AutoConfig.from_pretrained(write_model(name, folder / name, tiny=tiny))


@pytest.mark.parametrize("model", ["ngpt-1b", "diff-1.3b"])
def test_a_llama_of_its_size_has_the_same_weights_and_cache(model, tmp_path):
    ours, theirs = configuration(model, tmp_path), configuration(f"llama-as-{model}", tmp_path)
    assert parameter_count(theirs) == pytest.approx(parameter_count(ours), rel=2e-3)
    assert cache_size(theirs).at(8000) == cache_size(ours).at(8000)


def test_mambas_states_are_as_large_as_bimambas(tmp_path):
    ours, theirs = (configuration(name, tmp_path) for name in ("bimamba-2.7b", "mamba2-2.7b"))
    assert cache_size(theirs).per_sequence == cache_size(ours).per_sequence


@pytest.mark.parametrize("name", ORDER)
def test_every_model_has_a_tiny_one_of_its_kind(name, tmp_path):
    config = configuration(name, tmp_path, tiny=True)
    assert config.model_type == configuration(name, tmp_path / "large").model_type
    assert config.hidden_size <= 128
    assert config.num_hidden_layers == 2


def test_what_a_goal_asks_for_is_measured_and_comes_first():
    names = {workload.name for workload in FULL.workloads}
    for goal in GOALS:
        assert goal.workload in names
        for model in (goal.model, goal.other):
            first = chosen(model, FULL, only_goals=True)
            assert goal.workload in {workload.name for workload in first}
            assert chosen(model, FULL, only_goals=False)[: len(first)] == first
    assert chosen("llama-3.2-1b", FULL, only_goals=True) == []


@pytest.mark.parametrize("preset", [FULL, TINY])
def test_both_runs_of_a_decode_are_past_the_steps_of_the_prefill(preset):
    for workload in preset.workloads:
        if workload.many is not None:
            assert workload.few >= workload.rows * workload.context // preset.step_tokens
            assert workload.many > workload.few


def record(model: str, figures: dict[str, Any], **changed: Any) -> dict[str, Any]:
    about = {"machine": {"gpu": "H100", "uuid": "1"}, "engine": {"tiny": False}, "start_s": 60.0, "left_out": []}
    return {"model": model, "figures": figures, "weight_bytes": 3 * 10**9, **about, **changed}


def figures(decode: float, whole: float) -> dict[str, Any]:
    return {WHOLE: {"decode": decode, "whole": 1 / whole, "seconds": [whole]}}


def test_ratios_of_rates_are_held_against_the_goals():
    records = {
        "hymba-1.5b": record("hymba-1.5b", figures(4000.0, 5.0)),
        "llama-3.2-3b": record("llama-3.2-3b", figures(1000.0, 10.0)),
    }
    decode, whole, mamba = report.verdicts(records)[2:5]
    assert decode.endswith("| 3.49x | reached | 4.00x | yes |")
    assert whole.endswith("| 2.50x | not reached | 2.00x | yes |")
    assert mamba.endswith("| 3.00x | not measured |  |  |")
    records["llama-3.2-3b"]["machine"] = {"gpu": "H100", "uuid": "2"}
    assert report.verdicts(records)[2].endswith("| no: repeat both in one run |")
    records["hymba-1.5b"]["engine"] = {"tiny": True}
    assert "| not measured: tiny shapes |" in report.verdicts(records)[2]
    assert report.table(records)[2].startswith("| hymba-1.5b | 60 | 3.000 |")
    assert "| 4,000 | 5.00 |" in report.table(records)[2]


def test_results_of_several_runs_make_one_table(tmp_path, capsys):
    half = record("hymba-1.5b", {}, left_out=[WHOLE])
    parts = [record("llama-3.2-3b", figures(1000.0, 10.0)), half, record("hymba-1.5b", figures(4000.0, 5.0)), half]
    for i, part in enumerate(parts):
        (tmp_path / f"serve-{i}.json").write_text(json.dumps(part))
    assert main(["--merge", str(tmp_path), "--out", str(tmp_path / "merged")]) == 0
    assert "| reached | 4.00x | yes |" in capsys.readouterr().out
    (merged,) = (tmp_path / "merged").glob("h100-served-*.json")
    again = report.read([merged])
    assert list(again) == ["hymba-1.5b", "llama-3.2-3b"]
    assert again["hymba-1.5b"]["figures"] == figures(4000.0, 5.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--models", "gpt2"], "There is no model 'gpt2' to serve: choose among hymba-1.5b, "),
        (["--merge", "missing.json"], "missing.json holds no results of nlrl bench serve: give the files"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, says, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(says)


def test_a_plan_says_what_it_costs_and_runs_nothing(capsys):
    assert main(["--plan", "--goals", "--models", "hymba-1.5b,bimamba-2.7b"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "hymba-1.5b: about 100 s to start and 39 s to measure 1 workloads"
    assert said[2].startswith("about 264 s on an H100; what does not fit into 540 s")


def test_decoding_is_what_the_longer_run_takes_more(monkeypatch):
    pytest.importorskip("torch")
    from nlrl_backbones.bench_serve import vllm_measure

    taken = {1: 2.0, 4: 9.0, 10: 5.0, 110: 7.0}
    monkeypatch.setattr(vllm_measure, "seconds_for", lambda llm, ids, tokens, rows=None: taken[tokens])
    monkeypatch.setattr(vllm_measure, "prompts", lambda llm, rows, context: [])
    found = vllm_measure.measured(None, Workload("decode", rows=8, context=100, few=10, many=110))
    assert found["decode"] == 8 * 100 / 2.0
    assert found["whole"] == 1 / 5.0
    prefill = vllm_measure.measured(None, Workload("prefill", rows=8, context=100, few=1))
    assert prefill["prefill"] == 8 * 100 / 2.0
    taken[110] = 5.0
    assert "decode" not in vllm_measure.measured(None, Workload("decode", 8, 100, 10, 110))


def test_a_process_that_dies_or_hangs_costs_only_its_model(tmp_path, monkeypatch, capsys):
    served = json.dumps(record("ngpt-1b", {}))
    codes = {
        "hymba-1.5b": "import sys; print('out of memory', file=sys.stderr); sys.exit(3)",
        "llama-3.2-3b": "import time; time.sleep(60)",
        "ngpt-1b": f"import sys; open(sys.argv[-1], 'w').write({served!r})",
    }
    start = subprocess.Popen
    monkeypatch.setattr(
        command.subprocess, "Popen", lambda words, **how: start([sys.executable, "-c", codes[words[3]], *words], **how)
    )
    began = time.monotonic()
    assert command._run(tuple(codes), command.Choice(out=tmp_path, limit=6.0)) == 1
    assert time.monotonic() - began < 20
    said = capsys.readouterr().out
    assert "hymba-1.5b: ended with code 3; its log, " in said
    assert "ends with: out of memory" in said
    assert "llama-3.2-3b: ran out of time" in said
    assert "| ngpt-1b | 60 |" in said


@pytest.mark.full
@pytest.mark.vllm
def test_tiny_models_are_served_and_compared(tmp_path, capsys):
    pytest.importorskip("vllm")
    assert main(["--tiny", "--models", "ngpt-1b,llama-as-ngpt-1b", "--limit", "400", "--out", str(tmp_path)]) == 0
    assert "| not measured: tiny shapes |" in capsys.readouterr().out
    for name in ("ngpt-1b", "llama-as-ngpt-1b"):
        found = json.loads((tmp_path / f"serve-tiny-{name}.json").read_text())
        assert found["left_out"] == []
        assert found["cache_bytes"] > 0
        assert found["weight_bytes"] > 0
        assert found["figures"]["decode, 1 x short"]["decode"] > 0
        assert found["figures"]["prefill, 16 x 8k"]["prefill"] > 0

"""What `backbones/check_gpu.py` does on a GPU, with small models on a CPU: its plan, its verdicts, its figures."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HYMBA = {"num_hidden_layers": 2, "global_attn_idx": [1], "kv_reuse_group": None, "sliding_window": 40}


@pytest.fixture(scope="module")
def scripts() -> Iterator[tuple[Any, Any]]:
    """The two modules, which lie in a folder that is no package; their engines live in this process."""
    from nlrl.engine.vllm_setup import prepare_environment

    prepare_environment()
    sys.path.insert(0, str(Path(__file__).parents[2] / "backbones"))
    try:
        import check_gpu  # pyright: ignore[reportMissingImports]
        import gpu_parts  # pyright: ignore[reportMissingImports]

        yield check_gpu, gpu_parts
    finally:
        sys.path.pop(0)


def test_checks_run_together_then_loads_then_timings_in_turn(scripts: tuple[Any, Any]) -> None:
    check_gpu, _ = scripts
    models = [(Path("a"), Path("a.json")), (Path("b"), None)]
    waves = check_gpu.parts(models, ["hymba-1.5b", "ngpt-1b"], ["golden", "model", "load", "speed"])
    checks, loads, *timings = waves
    assert [words[0] for words in checks] == ["golden"] * 3 + ["model"] * 2
    assert ["model", "a", "a.json", "bfloat16"] in checks
    assert loads == [["load", "hymba-1.5b"], ["load", "ngpt-1b"]]
    assert [wave[0][:2] for wave in timings] == [["speed", "a"]] * 2 + [["speed", "b"]] * 2
    assert check_gpu.parts(models, [], ["kernels"]) == [[["kernels"]]]


def test_a_part_that_fails_or_hangs_is_reported(
    scripts: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_gpu, _ = scripts
    import subprocess

    def launch(words: list[str], out: Path, scratch: Path) -> tuple[Any, Path, Path]:
        result, log = scratch / f"{words[0]}.json", out / f"{words[0]}.log"
        log.write_text(f"log of {words[0]}")
        code = {
            "good": f"open({str(result)!r}, 'w').write('{{\"passed\": true, \"figure\": 3}}')",
            "dead": "raise SystemExit(3)",
            "slow": "import time; time.sleep(60)",
        }[words[0]]
        return subprocess.Popen([sys.executable, "-c", code]), result, log

    monkeypatch.setattr(check_gpu, "launch", launch)
    assert not check_gpu.run_all([[["slow"], ["good"], ["dead"]]], tmp_path, 3.0)
    report = json.loads((tmp_path / "check_gpu.json").read_text())
    assert report["good"] == {"passed": True, "figure": 3}
    assert "died (3)" in report["dead"]["error"]
    assert "ran out of time; end of" in report["slow"]["error"]
    assert list(report)[-1] == "slow"  # the others did not wait for it
    assert "passed  good" in capsys.readouterr().out


@pytest.mark.vllm
@pytest.mark.full
def test_a_model_is_held_against_its_reference(
    scripts: tuple[Any, Any], random_hymba: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("vllm")
    _, gpu_parts = scripts
    folder, reference = random_hymba(seed=6, **HYMBA), tmp_path / "reference.json"
    gpu_parts.make_reference(folder, reference, (2, 5, 33))
    noise = json.loads(reference.read_text())["noise"]
    assert 0 < noise["float16"] < noise["bfloat16"] < 1
    figures = gpu_parts.part_model(folder, reference, "float32", batch=9)
    assert figures["passed"], figures
    assert figures["batch_1"] == f"{3 * 32} / {3 * 32}"
    assert figures["batch_256"] == f"{9 * 32} / {9 * 32}"
    assert figures["batch_256_error"] < 1e-3


@pytest.mark.parametrize(
    ("dtype", "change", "good"),
    [
        ("float32", {}, True),
        ("float32", {"logprob_mean": 0.02}, False),
        ("float32", {"from_cache_error": 0.02}, False),
        ("bfloat16", {"batch_1": "50 / 100"}, True),  # another token, if both are as likely
        ("bfloat16", {"logprob_mean": 0.07}, False),
        ("bfloat16", {"batch_256_error": float("inf")}, False),
        ("bfloat16", {"batch_1_compared": 0.3}, True),
        ("bfloat16", {"batch_1_compared": 0.03}, False),  # one token a row agrees, and so well
        ("float32", {"from_cache_compared": 0.5}, False),
    ],
)
def test_what_is_good_enough(scripts: tuple[Any, Any], dtype: str, change: dict[str, Any], good: bool) -> None:
    names = ("batch_1", "batch_256", "from_cache")
    figures = dict.fromkeys(names, "100 / 100") | {f"{name}_error": 0.002 for name in names}
    figures |= {f"{name}_compared": 1.0 for name in names}
    figures |= {"logprob_max": 0.03, "logprob_mean": 0.003, "noise_mean": 0.03}
    assert scripts[1].good_enough(figures | change, dtype) is good


def test_decoding_is_compared_up_to_the_first_other_token(scripts: tuple[Any, Any]) -> None:
    from types import SimpleNamespace as Record

    steps = [{token: Record(logprob=-float(token))} for token in (1, 2, 3)]
    output = Record(outputs=[Record(token_ids=[1, 2, 3], logprobs=steps)])
    error, share = scripts[1].decode_error([output], [([1, 2, 9], [-1.5, -2.1, 0.0])])
    assert error == pytest.approx((0.5 + 0.1) / 2)
    assert share == pytest.approx(2 / 3)


@pytest.mark.vllm
def test_a_shape_is_served_with_random_weights(
    scripts: tuple[Any, Any], random_hymba: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("vllm")
    _, gpu_parts = scripts
    (tmp_path / "config.json").write_text((random_hymba(seed=6, **HYMBA) / "config.json").read_text())
    figures = gpu_parts.part_load(str(tmp_path), tokens="300", sequences="2")
    assert figures["passed"]
    kinds = [f"{kind} bytes a sequence" for kind in ("full attention", "window", "scan state")]
    assert sum(figures[kind] for kind in kinds) == figures["bytes_a_sequence"]
    assert figures["window bytes a sequence"] < figures["full attention bytes a sequence"]
    assert figures["weight_bytes"] > 0

"""What the plugin does to vLLM's process, and which vLLM the backbones refuse."""

import subprocess
import sys

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm


@pytest.mark.full
def test_vllm_starts_where_numba_was_imported_first():
    code = (
        f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n"
        "import numba\n"
        "from vllm.triton_utils.dispatcher import _rebind_kernels\n"
        "try:\n"
        "    _rebind_kernels([])\n"
        "except AttributeError:\n"
        "    print('fails alone')\n"
        "from nlrl_backbones.vllm_plugin import register\n"
        "register()\n"
        "_rebind_kernels([])\n"
        "print('works with us')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "works with us" in done.stdout, done.stderr[-2000:]


def test_another_vllm_is_refused_by_its_version(monkeypatch):
    import vllm

    from nlrl_backbones.common.vllm_compat import check_signatures

    check_signatures()
    monkeypatch.setattr(vllm, "__version__", "0.34.0")
    with pytest.raises(RuntimeError, match=r"run in vllm>=0\.32,<0\.34, not in 0\.34\.0: install one of these"):
        check_signatures()


def test_a_configuration_of_another_class_points_at_the_plugin():
    from types import SimpleNamespace
    from typing import Any

    from transformers import LlamaConfig

    from nlrl_backbones.common.vllm_compat import own_config
    from nlrl_backbones.ngpt.config import NGPTConfig

    config: Any = SimpleNamespace(model_config=SimpleNamespace(hf_config=LlamaConfig()))
    with pytest.raises(TypeError, match="read as LlamaConfig, not NGPTConfig: is nlrl's vLLM plugin installed"):
        own_config(config, NGPTConfig)

"""Random small configurations of every family, drawn by hypothesis, and random weights that make outputs differ."""

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

VOCABULARY = 96
Draw = Any


def _heads(draw: Draw, most: int = 4) -> tuple[int, int]:
    """Query heads, and key/value heads that divide them."""
    heads = draw(st.integers(1, most))
    return heads, draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))


@st.composite
def hymba(draw: Draw) -> dict[str, Any]:
    """Global layers anywhere, groups of any shape among layers of one kind, windows shorter than the prompts."""
    layers, (heads, kv_heads) = draw(st.integers(1, 5)), _heads(draw)
    everywhere = sorted(draw(st.sets(st.integers(0, layers - 1))))
    groups = []
    for kind in (everywhere, [i for i in range(layers) if i not in everywhere]):
        labels = [draw(st.integers(0, 2)) for _ in kind]
        members = [[i for i, label in zip(kind, labels, strict=True) if label == wanted] for wanted in (0, 1)]
        groups += [group for group in members if len(group) > 1]
    return {
        "model_type": "hymba", "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "hidden_size": heads * 2 * draw(st.integers(2, 10)),
        "intermediate_size": draw(st.integers(8, 40)), "sliding_window": draw(st.integers(1, 24)),
        "global_attn_idx": everywhere, "kv_reuse_group": groups or None,
        "num_memory_tokens": draw(st.integers(0, 9)), "mamba_d_state": draw(st.integers(1, 16)),
        "mamba_dt_rank": draw(st.integers(1, 8)), "mamba_d_conv": draw(st.integers(2, 5)),
        "max_position_embeddings": 512, "orig_max_position_embeddings": draw(st.sampled_from([256, 512])),
        "rope_type": draw(st.sampled_from(["ntk", "default"])),
    }  # fmt: skip


@st.composite
def diff(draw: Draw, variants: tuple[str, ...]) -> dict[str, Any]:
    """Key/value heads counted as transformers counts them."""
    variant, (heads, cached), width = (
        draw(st.sampled_from(variants)),
        _heads(draw),
        2 * draw(st.integers(1, 8)),
    )
    keys = {
        "model_type": "diff_transformer", "variant": variant, "num_hidden_layers": draw(st.integers(1, 4)),
        "num_attention_heads": 2 * heads, "num_key_value_heads": cached if variant == "v2" else 2 * cached,
        "head_dim": width, "hidden_size": 2 * heads * width if variant == "v1" else 4 * draw(st.integers(2, 16)),
        "intermediate_size": draw(st.integers(8, 64)), "max_position_embeddings": 512,
        "tie_word_embeddings": draw(st.booleans()),
    }  # fmt: skip
    if variant == "diffllama":
        keys["attention_bias"] = draw(st.booleans())
    return keys


@st.composite
def ngpt(draw: Draw) -> dict[str, Any]:
    """The model and its GPT baseline, the published position step and the textbook's."""
    heads = draw(st.integers(1, 4))
    return {
        "model_type": "ngpt", "use_nGPT": draw(st.sampled_from([1, 1, 0])), "n_layer": draw(st.integers(1, 4)),
        "n_head": heads, "n_embd": heads * 2 * draw(st.integers(1, 10)), "block_size": 512,
        "position": draw(st.sampled_from(["official", "rotary"])),
    }  # fmt: skip


@st.composite
def bimamba(draw: Draw) -> dict[str, Any]:
    """Widths that the heads divide; chunks shorter than the prompts."""
    head = draw(st.sampled_from([4, 8, 16]))
    return {
        "model_type": "bimamba", "d_model": head * draw(st.integers(1, 4)), "n_layer": draw(st.integers(1, 4)),
        "ssm_cfg": {
            "layer": "Mamba2", "d_state": draw(st.sampled_from([4, 8, 16])), "headdim": head,
            "chunk_size": draw(st.sampled_from([8, 16, 32])), "expand": draw(st.sampled_from([1, 2, 3])),
        },
        "tie_embeddings": True,
    }  # fmt: skip


FAMILIES = {
    "hymba": hymba(),
    "diff": diff(("v1", "v2")),
    "diffllama": diff(("diffllama",)),
    "ngpt": ngpt(),
    "bimamba": bimamba(),
}


def build(keys: dict[str, Any], seed: int, folder: Path, vocabulary: int = VOCABULARY) -> Path:
    """Write a model of this configuration with weights of about unit gain to ``folder``."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import nlrl_backbones  # noqa: F401  registers the architectures

    shape = dict(keys)
    ids = {"vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.pop("model_type"), **shape, **ids))
    model = model.float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim == 1 or any(word in name for word in ("A_log", "wscale", "wbias")):
                parameter.add_(0.1 * noise)
            elif "embed" in name or "wte" in name or "memory" in name:
                parameter.copy_(0.7 * noise)
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    if hasattr(model, "after_optimizer_step"):
        model.after_optimizer_step()
    model.save_pretrained(folder)
    return folder

"""Who takes part: the boxed shapes, and controls of the same number of parameters within three percent.

A control is the library's own model wherever one exists: nGPT's file describes the GPT that its paper compares with,
transformers has Mamba-2 and, as Bamba, attention layers and Mamba-2 layers in turns. Hymba's paper compares with
Mamba-1; Mamba-2 stands for it here, since no library trains Mamba-1 on a GPU without a CUDA extension of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nlrl.errors import UnknownNameError
from nlrl.pretrain.shapes import SHAPES


@dataclass(frozen=True, slots=True)
class Contestant:
    """A model of a race."""

    name: str
    shape: Mapping[str, Any]
    teacher: str = ""
    """Whose distribution it learns in place of the text, by the loss of Bi-Mamba's paper; "" for the text itself."""


_MAMBA2 = {
    "model_type": "mamba2",
    "hidden_size": 160,
    "num_hidden_layers": 9,
    "state_size": 64,
    "num_heads": 10,
    "head_dim": 32,
    "n_groups": 1,
    "chunk_size": 64,
    "expand": 2,
    "conv_kernel": 4,
    "tie_word_embeddings": True,
}
_TURNS = {
    "model_type": "bamba",
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_layer_indices": [0, 2, 4],
    "mamba_n_heads": 8,
    "mamba_d_head": 32,
    "mamba_n_groups": 1,
    "mamba_d_state": 32,
    "mamba_expand": 2,
    "mamba_chunk_size": 64,
    "tie_word_embeddings": True,
}

_DIFF_V2 = {
    **SHAPES["diff"],
    "variant": "v2",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 432,
}

CONTESTANTS: Mapping[str, Contestant] = {
    one.name: one
    for one in (
        *(Contestant(name, shape) for name, shape in SHAPES.items()),
        Contestant("gpt", {**SHAPES["ngpt"], "use_nGPT": 0}),
        Contestant("diff-v2", _DIFF_V2),
        Contestant("mamba2", _MAMBA2),
        Contestant("attention-mamba", _TURNS),
        Contestant("hymba without meta tokens", {**SHAPES["hymba"], "num_memory_tokens": 0}),
        Contestant("hymba without shared keys", {**SHAPES["hymba"], "kv_reuse_group": []}),
        Contestant("hymba without windows", {**SHAPES["hymba"], "global_attn_idx": list(range(6))}),
        Contestant("bimamba distilled", SHAPES["bimamba"], teacher="mamba2"),
    )
}

CLAIMS: Mapping[str, tuple[str, ...]] = {
    "ngpt": ("gpt", "ngpt"),
    "diff": ("transformer", "diff", "diff-v2"),
    "hymba": (
        "transformer",
        "mamba2",
        "attention-mamba",
        "hymba",
        "hymba without meta tokens",
        "hymba without shared keys",
        "hymba without windows",
    ),
    "bimamba": ("mamba2", "bimamba", "bimamba distilled"),
}
"""Claim -> those who race for it, the control first."""


def contestants_of(claim: str) -> tuple[Contestant, ...]:
    """Those who race for a claim, the control first.

    Raises:
        UnknownNameError: there is no such claim.
    """
    if claim not in CLAIMS:
        raise UnknownNameError("claim", claim, CLAIMS)
    return tuple(CONTESTANTS[name] for name in CLAIMS[claim])

"""The layout of heads and the difference of their maps: what both views of the model compute alike.

Differential attention, rewritten exactly as ordinary grouped attention: a cached head holds K = [k1; k2] and V; the two
queries of a head are [q1; 0] and [0; q2], two query heads of the same group, so that

    softmax(s [q1; 0] . K) V = A1 V,   softmax(s [0; q2] . K) V = A2 V,   out = A1 V - lambda A2 V.

In V2 both maps share one key, so nothing needs to be padded. Either way query heads 2i and 2i+1 are the maps of head i.

Axes: X any leading axes, H differential heads, G cached heads, P the pair of maps, M key maps of a cached head (2, in
V2 1), D width d of a map, W width of a cached head (M d). A trailing C is a flat axis of heads times width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nlrl_backbones.diff_transformer.config import DiffTransformerConfig


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """How the rows of a layer's projections are heads.

    Attributes:
        heads: H differential heads on this device.
        cached_heads: G key/value heads on this device.
        width: d, the width of one map.
        key_maps: keys of a cached head: 2, or 1 where both maps share it.
        halves: whether the first half of all heads are the first maps (DiffLlama), rather than every other head.
    """

    heads: int
    cached_heads: int
    width: int
    key_maps: int
    halves: bool

    @classmethod
    def of(cls, config: DiffTransformerConfig, parts: int = 1) -> "HeadLayout":
        """The layout of one of ``parts`` devices.

        Raises:
            ValueError: the heads do not divide into so many parts.
        """
        if config.heads % parts or config.cached_heads % parts:
            raise ValueError(
                f"{config.heads} differential heads over {config.cached_heads} cached heads cannot be split evenly "
                f"over {parts} devices: choose a tensor_parallel_size that divides both."
            )
        return cls(
            config.heads // parts,
            config.cached_heads // parts,
            config.head_dim or 0,
            config.key_maps,
            halves=config.variant == "diffllama",
        )

    def queries(self, q_XC: torch.Tensor) -> torch.Tensor:
        """[X, 2 H D] to [X, H, P, D]."""
        return self._maps(q_XC, self.heads, 2)

    def keys(self, k_XC: torch.Tensor) -> torch.Tensor:
        """[X, G M D] to [X, G, M, D]."""
        return self._maps(k_XC, self.cached_heads, self.key_maps)

    def values(self, v_XC: torch.Tensor) -> torch.Tensor:
        """[X, G W] to [X, G, W]; DiffLlama's value of a pair is made of two of its value heads."""
        return self._maps(v_XC, self.cached_heads, self.key_maps).flatten(-2)

    def _maps(self, x_XC: torch.Tensor, heads: int, maps: int) -> torch.Tensor:
        if self.halves:
            return x_XC.unflatten(-1, (maps, heads, self.width)).transpose(-3, -2)
        return x_XC.unflatten(-1, (heads, maps, self.width))

    def widen(self, q_XHPD: torch.Tensor, k_XGMD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries [X, 2H, W] and keys [X, G, W] of the ordinary attention that gives both maps."""
        if self.key_maps == 1:
            return q_XHPD.flatten(-3, -2), k_XGMD.squeeze(-2)
        first, second = q_XHPD.unbind(-2)
        q_XHPW = torch.stack([F.pad(first, (0, self.width)), F.pad(second, (self.width, 0))], dim=-2)
        return q_XHPW.flatten(-3, -2), k_XGMD.flatten(-2)


def lambda_init(layer: int) -> float:
    """The constant part of lambda: 0.8 - 0.6 exp(-0.3 layer), layers counted from 0 (the paper's l - 1, equation 3)."""
    return 0.8 - 0.6 * math.exp(-0.3 * layer)


def lambda_of(vectors: Sequence[torch.Tensor], init: float, dtype: torch.dtype) -> torch.Tensor:
    """The scalar exp(q1 . k1) - exp(q2 . k2) + init (equation 3); nothing bounds it.

    Args:
        vectors: q1, k1, q2, k2, each [D].
        init: ``lambda_init`` of the layer.
        dtype: of the model; the result has it or float32, whichever is wider.
    """
    wide = torch.promote_types(dtype, torch.float32)
    q1_D, k1_D, q2_D, k2_D = (vector.to(wide) for vector in vectors)
    return (q1_D * k1_D).sum().exp() - (q2_D * k2_D).sum().exp() + init


def difference(
    out_XC: torch.Tensor,
    lam: torch.Tensor,
    width: int,
    *,
    eps: float | None = None,
    weight_W: torch.Tensor | None = None,
    factor: float = 1.0,
) -> torch.Tensor:
    """From both maps' outputs to the heads': subtract, norm each head, multiply; in float32 or wider inside.

    Args:
        out_XC: [X, 2 H W], heads 2i and 2i+1 being the maps of head i.
        lam: a scalar, or one number a token and head [X, H].
        width: W.
        eps: of the RMS norm over each head's W values; None: no norm.
        weight_W: weight of that norm, or None.
        factor: on the normed values; the constant 1 - lambda_init.

    Returns:
        [X, H W], in the dtype of ``out_XC``.
    """
    wide = torch.promote_types(out_XC.dtype, torch.float32)
    first, second = out_XC.to(wide).unflatten(-1, (-1, 2, width)).unbind(-2)
    o_XHW = first - (lam if lam.ndim == 0 else lam[..., None]) * second
    if eps is not None:
        o_XHW = o_XHW * torch.rsqrt(o_XHW.square().mean(dim=-1, keepdim=True) + eps)
        if weight_W is not None:
            o_XHW = o_XHW * weight_W.to(wide)
        o_XHW = o_XHW * factor
    return o_XHW.flatten(-2).to(out_XC.dtype)

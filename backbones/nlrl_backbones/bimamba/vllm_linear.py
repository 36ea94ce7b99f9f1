"""Bi-Mamba's projections under vLLM: one bit a weight from packed checkpoints, dense from latent ones.

The mixer is vLLM's own ``MambaMixer2``. It takes a quantisation configuration for its two projections, and that is
where this comes in: ``BinaryConfig`` is handed to it directly, whatever the checkpoint says about quantisation.

- packed: the bits, in GPU memory as on disk; the product is ``nlrl_kernels.binary_linear``, behind an operation that
  torch.compile does not look into. On a CPU the effective matrix is formed once, for there memory is not what counts.
  On one device, without adapters, ``vllm_mixer`` has the norm, gate and residual around it done by the same operation.
- latent: the effective matrix wscale * sign(W) + wbias in the model's dtype. Signs are taken from the numbers as
  stored, before any rounding.

Tensor parallelism: rows of in_proj follow the heads, with B and C on every device; out_proj is split by input column,
in whole bytes. A zero that lies on another device is marked by row -1.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.utils import set_weight_attrs
from vllm.platforms import current_platform
from vllm.utils.torch_utils import direct_register_custom_op

from nlrl_kernels import binary_linear, normed_binary_linear
from nlrl_kernels.binary.reference import unpack_signs

from .config import BiMambaConfig

Pick = Callable[[torch.Tensor], torch.Tensor]


def dense_on_this_device() -> bool:
    """Whether packed projections are multiplied as dense matrices: on a CPU."""
    return current_platform.is_cpu()


def _product(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, zeros: torch.Tensor | None
) -> torch.Tensor:
    return binary_linear(x, packed, scale[0], shift[0], zeros)


def _product_shape(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, zeros: torch.Tensor | None
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], packed.shape[0])


def _normed_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    packed: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    zeros: torch.Tensor | None,
    gate: torch.Tensor | None,
    residual: torch.Tensor | None,
    dtype: torch.dtype | None,
) -> torch.Tensor:
    return normed_binary_linear(
        x, weight, packed, scale[0], shift[0], zeros, eps=eps, gate=gate, residual=residual, dtype=dtype
    )


def _normed_product_shape(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    packed: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    zeros: torch.Tensor | None,
    gate: torch.Tensor | None,
    residual: torch.Tensor | None,
    dtype: torch.dtype | None,
) -> torch.Tensor:
    kept = (dtype or x.dtype) if residual is None else residual.dtype
    return x.new_empty(*x.shape[:-1], packed.shape[0], dtype=kept)


if not hasattr(torch.ops.vllm, "nlrl_binary_linear"):
    direct_register_custom_op("nlrl_binary_linear", _product, fake_impl=_product_shape)
    direct_register_custom_op("nlrl_normed_binary_linear", _normed_product, fake_impl=_normed_product_shape)


def multiplies_bits(layer: nn.Module) -> bool:
    """Whether this projection is a product with packed bits and nothing else: on one GPU, without an adapter."""
    method = layer.quant_method if isinstance(layer, LinearBase) else None
    return isinstance(method, BinaryLinearMethod) and method.packed and method.ranks == 1 and not dense_on_this_device()


def normed_product(
    layer: Any,
    x: torch.Tensor,
    norm: Any,
    gate: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """``nlrl_kernels.normed_binary_linear`` of a projection that ``multiplies_bits``, after one of vLLM's norms."""
    zeros = layer.weight_zeros if layer.quant_method.zeros else None
    return torch.ops.vllm.nlrl_normed_binary_linear(
        x, norm.weight, norm.variance_epsilon, layer.weight_packed, layer.wscale, layer.wbias, zeros, gate, residual,
        dtype,
    )  # fmt: skip


def local_rows(config: BiMambaConfig, ranks: int, rank: int) -> torch.Tensor:
    """Rows of the whole in_proj that a device holds, in its order: its z and x, all of B and C, its dt."""
    inner, states, heads = config.intermediate_size, config.n_groups * config.state_size, config.num_heads
    parts, begin = [], 0
    for size, shared in ((inner, False), (inner, False), (states, True), (states, True), (heads, False)):
        share = size if shared else size // ranks
        first = begin if shared else begin + rank * share
        parts.append(torch.arange(first, first + share))
        begin += size
    return torch.cat(parts)


def _loader(pick: Pick) -> Callable[..., None]:
    # vLLM's reload binds the name `param`; its merged layers always name a part, which is None for the whole.
    def load(param: torch.Tensor, loaded_weight: torch.Tensor, shard_id: None = None) -> None:
        mine = pick(loaded_weight)
        if param.shape != mine.shape:
            raise ValueError(f"Bi-Mamba: a tensor of shape {list(mine.shape)} does not fit {list(param.shape)}.")
        param.data.copy_(mine)

    return load


class BinaryConfig(QuantizationConfig):
    """Gives every projection of the mixers the method below."""

    def __init__(self, config: BiMambaConfig) -> None:
        super().__init__()
        self.config = config

    def get_name(self) -> Any:
        return "bimamba"

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 70

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "BinaryConfig":
        return cls(BiMambaConfig(**config))

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        if not isinstance(layer, LinearBase):
            return None
        return BinaryLinearMethod(self.config, prefix)


class BinaryLinearMethod(LinearMethodBase):
    """Weights and product of one projection, named by its prefix as in checkpoints."""

    def __init__(self, config: BiMambaConfig, prefix: str) -> None:
        self.config = config
        self.packed = config.weight_format == "packed"
        self.zeros = config.packed_zeros.get(prefix, 0)
        self.splits_columns = prefix.endswith("out_proj")
        self.ranks, self.rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        inputs, outputs = input_size_per_partition, sum(output_partition_sizes)
        if self.packed and self.splits_columns and self.ranks > 1 and inputs % 8:
            raise ValueError(
                f"Bi-Mamba: {input_size} inner channels over {self.ranks} devices do not fill whole bytes of packed "
                "signs: choose a tensor_parallel_size that leaves a multiple of 8, or serve the latent checkpoint."
            )
        add = self._adder(layer)
        scales: Pick = self._own_columns if self.splits_columns else _whole
        add("wscale", torch.empty(1, inputs, dtype=torch.float32), scales)
        add("wbias", torch.empty(1, inputs, dtype=torch.float32), scales)
        matrix: Pick = self._own_columns if self.splits_columns else self._own_rows
        if not self.packed:
            add("weight", torch.empty(outputs, inputs, dtype=params_dtype), matrix)
            return
        add("weight_packed", torch.empty(outputs, -(-inputs // 8), dtype=torch.uint8), matrix)
        if self.zeros:
            add("weight_zeros", torch.empty(self.zeros, 2, dtype=torch.int32), self._own_zeros)

    def _adder(self, layer: nn.Module) -> Callable[[str, torch.Tensor, Pick], None]:
        def add(name: str, data: torch.Tensor, pick: Pick) -> None:
            parameter = nn.Parameter(data, requires_grad=False)
            layer.register_parameter(name, parameter)
            set_weight_attrs(parameter, {"weight_loader": _loader(pick)})

        return add

    def _own_rows(self, whole: torch.Tensor) -> torch.Tensor:
        return whole if self.ranks == 1 else whole[local_rows(self.config, self.ranks, self.rank).to(whole.device)]

    def _own_columns(self, whole: torch.Tensor) -> torch.Tensor:
        return whole.chunk(self.ranks, dim=1)[self.rank]

    def _own_zeros(self, zeros_Z2: torch.Tensor) -> torch.Tensor:
        """The pairs in local numbering, row -1 where they lie elsewhere; filled up with such pairs to the room made."""
        rows, columns = zeros_Z2.unbind(dim=1)
        if self.splits_columns:
            width = self.config.intermediate_size // self.ranks
            elsewhere = columns // width != self.rank
            columns = columns % width
        else:
            places = torch.full((self.config.projection_size,), -1, dtype=rows.dtype, device=rows.device)
            mine = local_rows(self.config, self.ranks, self.rank).to(rows.device)
            places[mine] = torch.arange(len(mine), dtype=rows.dtype, device=rows.device)
            rows = places[rows.long()]
            elsewhere = rows < 0
        pairs = torch.stack([rows.masked_fill(elsewhere, -1), columns], dim=1)
        return torch.cat([pairs, pairs.new_tensor([[-1, 0]]).expand(self.zeros - len(pairs), 2)])

    def process_weights_after_loading(self, layer: Any) -> None:
        """Form the effective matrix where one is used; after every load, since it depends on all of the tensors."""
        if not self.packed:
            layer.weight.data.copy_(_effective(layer, layer.weight.float()))
        elif dense_on_this_device():
            signs = unpack_signs(layer.weight_packed, layer.wscale.shape[1], getattr(layer, "weight_zeros", None))
            dense = _effective(layer, signs).to(layer.params_dtype)
            # Not a parameter: a reload leaves those alone that it did not load. In place, for compiled graphs.
            known = layer.__dict__.get("dense")
            layer.__dict__["dense"] = dense if known is None else known.copy_(dense)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if not self.packed:
            y = F.linear(x, layer.weight)
        elif dense_on_this_device():
            y = F.linear(x, layer.dense)
        else:
            zeros = layer.weight_zeros if self.zeros else None
            y = torch.ops.vllm.nlrl_binary_linear(x, layer.weight_packed, layer.wscale, layer.wbias, zeros)
        return y if bias is None else y + bias


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _effective(layer: Any, signs_OI: torch.Tensor) -> torch.Tensor:
    return layer.wscale * signs_OI + layer.wbias

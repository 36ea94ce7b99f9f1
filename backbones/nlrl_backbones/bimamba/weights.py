"""Names of Bi-Mamba's tensors in official checkpoints, their shapes, and the packed form that is served.

Our transformers model uses the official names as they are. A packed checkpoint has, for each binarised ``X.weight``,
``X.weight_packed`` (uint8, one bit a weight) and, where the matrix has exact zeros, ``X.weight_zeros`` (int32 pairs);
all other tensors are those of the latent checkpoint. Packing keeps what a forward pass uses; the magnitudes that
training moves are gone, so a packed model is not trained further.

Signs are those of the stored numbers. The official evaluation first rounds them to float16, where magnitudes below
3e-8 become zeros; here they keep their sign.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlrl_backbones.bimamba.config import SIZES, BiMambaConfig
from nlrl_backbones.common.checkpoint import CheckpointError, check_tensors, read_json, read_tensors

if TYPE_CHECKING:
    import torch

FAMILY = "bimamba"
SIGNATURE = (r"layers\.\d+\.mixer\.in_proj\.wscale$", r"layers\.\d+\.mixer\.dt_bias$")
"""Tensor names that no other family has: a Mamba-2 mixer whose projections have column scales."""
EMBEDDING, HEAD = "backbone.embedding.weight", "lm_head.weight"
PROJECTIONS = ("in_proj", "out_proj")
"""The binarised matrices of a mixer."""


def official_shapes(config: BiMambaConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of an official checkpoint, the tied head left out."""
    vocabulary, width = config.vocab_size, config.d_model
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (vocabulary, width), "backbone.norm_f.weight": (width,)}
    if not config.tie_embeddings:
        shapes[HEAD] = (vocabulary, width)
    for layer in range(config.n_layer):
        for name, shape in layer_shapes(config).items():
            shapes[f"backbone.layers.{layer}.{name}"] = shape
    return shapes


def layer_shapes(config: BiMambaConfig) -> dict[str, tuple[int, ...]]:
    """Name inside a layer and shape of each of its tensors."""
    width, inner, heads = config.d_model, config.intermediate_size, config.num_heads
    return {
        "norm.weight": (width,),
        "mixer.in_proj.weight": (config.projection_size, width),
        "mixer.in_proj.wscale": (1, width),
        "mixer.in_proj.wbias": (1, width),
        "mixer.conv1d.weight": (config.conv_size, 1, config.conv_kernel),
        "mixer.conv1d.bias": (config.conv_size,),
        "mixer.dt_bias": (heads,),
        "mixer.A_log": (heads,),
        "mixer.D": (heads,),
        "mixer.norm.weight": (inner,),
        "mixer.out_proj.weight": (width, inner),
        "mixer.out_proj.wscale": (1, inner),
        "mixer.out_proj.wbias": (1, inner),
    }


def projections(config: BiMambaConfig) -> Iterator[str]:
    """Names of the binarised modules."""
    for layer in range(config.n_layer):
        for name in PROJECTIONS:
            yield f"backbone.layers.{layer}.mixer.{name}"


def read_official(folder: Path) -> tuple[BiMambaConfig, "dict[str, torch.Tensor]"]:
    """Configuration and tensors of a folder with ``*.bin`` or safetensors, and ``config.json`` where it is not lost.

    Official training checkpoints hold no configuration; then the published size that fits the shapes is taken.
    Tensors lie under their official names, the head left out where it is tied.

    Raises:
        CheckpointError: nothing there can be read, or the tensors are not those that the configuration asks for.
        ValueError: the configuration is not Bi-Mamba's.
    """
    tensors = read_tensors(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if (folder / "config.json").is_file():
        keys = read_json(folder / "config.json")
        if keys.get("model_type", FAMILY) != FAMILY:
            raise CheckpointError(f"{folder / 'config.json'} is of a {keys['model_type']} model, not of Bi-Mamba.")
        config = BiMambaConfig(**keys)
    else:
        config = _config_of_size(folder, shapes)
    if config.weight_format != "latent":
        raise CheckpointError(f"'{folder}' is packed already: its latent weights cannot be had back from it.")
    if config.tie_embeddings:
        tensors = _without_tied_head(tensors)
    check_tensors(FAMILY, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, official_shapes(config))
    return config, tensors


def from_official(config: BiMambaConfig, tensors: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The tensors under the names of our model, which are the official ones."""
    return dict(tensors)


def to_official(config: BiMambaConfig, tensors: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The tensors under the official names; packed projections become matrices of signs.

    The official code's strict loading wants a tied head under its own name too: add ``lm_head.weight``.
    """
    return dict(tensors) if config.weight_format == "latent" else to_signs(config, tensors)[1]


def to_packed(
    config: BiMambaConfig, tensors: "Mapping[str, torch.Tensor]"
) -> tuple[BiMambaConfig, "dict[str, torch.Tensor]"]:
    """The packed form of a latent checkpoint: signs as bits, exact zeros listed, everything else as it is.

    Raises:
        CheckpointError: a projection that is not finite.
        ValueError: a checkpoint that is packed already.
    """
    from nlrl_kernels.binary.reference import pack_signs

    if config.weight_format == "packed":
        raise ValueError("These weights are packed already: give the latent ones.")
    tensors, counts = dict(tensors), {}
    for name in projections(config):
        try:
            tensors[f"{name}.weight_packed"], zeros = pack_signs(tensors.pop(f"{name}.weight"))
        except ValueError as error:
            raise CheckpointError(f"{name}.weight cannot be packed: {error}") from error
        if len(zeros):
            tensors[f"{name}.weight_zeros"], counts[name] = zeros, len(zeros)
    return _with(config, weight_format="packed", packed_zeros=counts), tensors


def to_signs(
    config: BiMambaConfig, tensors: "Mapping[str, torch.Tensor]"
) -> tuple[BiMambaConfig, "dict[str, torch.Tensor]"]:
    """A latent checkpoint that computes what the packed one does: its matrices are the signs -1, 0 and 1."""
    from nlrl_kernels.binary.reference import unpack_signs

    tensors = dict(tensors)
    for name in projections(config):
        packed, zeros = tensors.pop(f"{name}.weight_packed"), tensors.pop(f"{name}.weight_zeros", None)
        scale = tensors[f"{name}.wscale"]
        tensors[f"{name}.weight"] = unpack_signs(packed, scale.shape[-1], zeros, dtype=scale.dtype)
    return _with(config, weight_format="latent", packed_zeros={}), tensors


def _with(config: BiMambaConfig, **changes: Any) -> BiMambaConfig:
    return BiMambaConfig(**(config.to_dict() | changes))


def _config_of_size(folder: Path, shapes: "dict[str, tuple[int, ...]]") -> BiMambaConfig:
    for size in SIZES.values():
        config = BiMambaConfig(**size)
        if shapes.items() >= official_shapes(config).items():
            return config
    raise CheckpointError(
        f"'{folder}' has no config.json and its tensors fit none of the published sizes {', '.join(SIZES)}: "
        "copy the configuration it was trained with there."
    )


def _without_tied_head(tensors: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """Official files hold the one matrix under both names; either is enough, and two must agree."""
    head = tensors.get(HEAD)
    rest = {name: tensor for name, tensor in tensors.items() if name != HEAD}
    if head is None:
        return rest
    if not rest.setdefault(EMBEDDING, head).equal(head):
        raise CheckpointError(
            f"{EMBEDDING} and {HEAD} differ although config.json ties them: set tie_embeddings to false, or drop one."
        )
    return rest

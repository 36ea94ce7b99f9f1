"""check_backbone: whether a model folder works as a backbone, on the CPU and without vLLM."""

import tempfile
from pathlib import Path
from typing import Any

_TOLERANCE = 2e-3
"""On logits in float32, relative to their largest: different orders of summation, no more."""

_CACHES = ("past_key_values", "cache_params")
"""Names of a cache in transformers: of attention, and of its own Mamba models."""


class BackboneCheckError(AssertionError):
    """A backbone that breaks its contract; the message says which promise and by how much."""


def check_backbone(model_dir: str | Path, length: int = 12) -> None:
    """Check the model in a folder: it loads, and its passes agree with one another.

    Six promises: the configuration and the architecture are registered; the weights load, all of them; decoding
    token by token with a cache equals one full pass; a padded batch equals its rows alone, padded left or right;
    saving and loading changes nothing; the gradient of the loss is finite and reaches every parameter. The controls,
    whose models are transformers' own, are held to the same.

    Args:
        model_dir: folder with ``config.json`` and ``*.safetensors``.
        length: tokens of the random prompts.

    Raises:
        BackboneCheckError: one sentence for the first broken promise.
    """
    import torch

    model = _load(model_dir)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (2, length), generator=generator)
    with torch.no_grad():
        full = model(ids, use_cache=False).logits
        _check_cached_decoding(model, ids, full)
        _check_padding(model, ids)
        _check_saving(model, ids, full)
    _check_gradients(model, ids)


def _load(model_dir: str | Path) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from nlrl_backbones import BACKBONES

    try:
        config = AutoConfig.from_pretrained(model_dir)
    except (ValueError, OSError) as error:
        raise BackboneCheckError(f"The configuration in {model_dir} cannot be read: {error}") from error
    known = {backbone.model_type: backbone for backbone in BACKBONES.values()}
    if config.model_type not in known:
        raise BackboneCheckError(f"Model type {config.model_type!r} is not registered: the backbones are {[*known]}.")
    architecture = known[config.model_type].architecture
    if architecture not in (config.architectures or []):
        raise BackboneCheckError(f"config.json must list {architecture!r} under architectures, which vLLM reads.")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, output_loading_info=True)
    except (ValueError, OSError, RuntimeError) as error:
        raise BackboneCheckError(f"The weights in {model_dir} cannot be loaded: {error}") from error
    model, report = loaded
    wrong = {key: sorted(map(str, names)) for key, names in report.items() if names and key.endswith("_keys")}
    if wrong:
        raise BackboneCheckError(f"The weights do not fit the model: {wrong}.")
    return model.eval()


def _check_cached_decoding(model: Any, ids: Any, full: Any) -> None:
    half = ids.shape[1] // 2
    output = model(ids[:, :half], use_cache=True)
    logits = [output.logits]
    for t in range(half, ids.shape[1]):
        cache = {name: output[name] for name in _CACHES if name in output}
        output = model(ids[:, t : t + 1], **cache, use_cache=True)
        logits.append(output.logits)
    import torch

    _compare(torch.cat(logits, dim=1), full, "Decoding token by token with a cache differs from one full pass")


def _check_padding(model: Any, ids: Any) -> None:
    import torch

    short, pad = ids.shape[1] // 2, model.config.pad_token_id or 0
    alone = model(ids[1:, :short], use_cache=False).logits[0]
    for side in ("left", "right"):
        where = slice(ids.shape[1] - short, None) if side == "left" else slice(0, short)
        batch, mask = ids.clone(), torch.ones_like(ids)
        batch[1], mask[1] = pad, 0
        batch[1, where], mask[1, where] = ids[1, :short], 1
        together = model(batch, attention_mask=mask, use_cache=False).logits[1, where]
        _compare(together, alone, f"A row padded on the {side} differs from the row alone")


def _check_saving(model: Any, ids: Any, full: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = _load(folder)
    before, after = model.state_dict(), again.state_dict()
    changed = sorted(name for name in before if name not in after or not before[name].equal(after[name]))
    if changed or before.keys() != after.keys():
        raise BackboneCheckError(f"Saving and loading changes the weights: {changed[:3]}.")
    _compare(again(ids, use_cache=False).logits, full, "Saving and loading changes the logits")


def _check_gradients(model: Any, ids: Any) -> None:
    import torch

    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is None or not bool(torch.isfinite(parameter.grad).all()):
            raise BackboneCheckError(f"The gradient of {name} is missing or not finite.")
    model.zero_grad()


def _compare(actual: Any, expected: Any, complaint: str) -> None:
    error = float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    if not error <= _TOLERANCE:  # also catches NaN
        raise BackboneCheckError(f"{complaint}: largest relative error of the logits {error:.1e} > {_TOLERANCE:.0e}.")

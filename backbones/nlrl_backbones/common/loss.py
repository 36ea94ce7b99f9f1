"""The loss of a causal language model."""

import torch
import torch.nn.functional as F


def next_token_loss(
    logits_BTV: torch.Tensor, labels_BT: torch.Tensor, items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross-entropy of each token under the logits before it, in nats; labels of -100 carry none.

    The mean over the tokens that count, or with ``items`` the sum over that number, as transformers' trainer wants it
    when it accumulates gradients.
    """
    reduction = "mean" if items is None else "sum"
    logits, following = logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten()
    loss = F.cross_entropy(logits, following, ignore_index=-100, reduction=reduction)
    return loss if items is None else loss / items

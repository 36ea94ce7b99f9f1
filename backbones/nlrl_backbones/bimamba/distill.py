"""Autoregressive distillation: how Bi-Mamba is trained from scratch under a full-precision teacher.

Source: Tang et al. 2024 (arXiv 2411.11843), section 3.3, and the official trainer's ``use_kd``. The teacher may be any
causal language model of the same vocabulary; the paper's is LLaMA-2 7B. One deviation: positions may be left out
(padding), where the official code, which never pads, counts every one.

Axes: B batch, T tokens, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F

IGNORED = -100
"""Label of positions that are not counted."""
HARD, SOFT, BOTH = 0, 1, 2
"""The official ``use_kd``: labels alone, teacher alone (the paper's), the mean of the two."""


def distillation_loss(
    logits_BTV: torch.Tensor,
    teacher_logits_BTV: torch.Tensor,
    next_ids_BT: torch.Tensor,
    *,
    use_kd: int = SOFT,
    count: int | torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross entropy of the student against softmax(teacher), mean over positions, temperature 1.

    Args:
        logits_BTV: the student's.
        teacher_logits_BTV: the teacher's at the same positions.
        next_ids_BT: the token that follows each position, or -100 where the position does not count.
        use_kd: 1 is the loss above, 0 the cross entropy of ``next_ids_BT`` instead, 2 the mean of both.
        count: divide the sum by this instead of by the number of positions; for gradient accumulation.

    Raises:
        ValueError: the vocabularies differ in size, or there is no such ``use_kd``.
    """
    if use_kd not in (HARD, SOFT, BOTH):
        raise ValueError(f"use_kd is {use_kd!r}: choose 0 (labels), 1 (teacher) or 2 (the mean of both).")
    _check_vocabularies(logits_BTV.shape[-1], teacher_logits_BTV.shape[-1])
    counted = next_ids_BT != IGNORED
    student = logits_BTV[counted].float()
    divisor = counted.sum() if count is None else count
    parts = []
    if use_kd in (SOFT, BOTH):
        teacher = teacher_logits_BTV[counted].float().softmax(dim=-1)
        parts.append(F.cross_entropy(student, teacher, reduction="sum"))
    if use_kd in (HARD, BOTH):
        parts.append(F.cross_entropy(student, next_ids_BT[counted], reduction="sum"))
    return torch.stack(parts).mean() / divisor


class Distillation:
    """The loss in the form that transformers' ``Trainer`` takes as ``compute_loss_func``.

    ``Trainer(model=student, compute_loss_func=Distillation(teacher), ...)``. Labels must be the input ids, -100 at
    padding, as ``DataCollatorForLanguageModeling(mlm=False)`` makes them: the teacher reads its input from them.
    Positions that a label follows are counted, as the trainer counts them when it accumulates gradients; so the last
    token of a row is left out.

    Args:
        teacher: a causal language model; it is put into evaluation mode and never changed.
        use_kd: as in ``distillation_loss``.
    """

    def __init__(self, teacher: Any, use_kd: int = SOFT) -> None:
        self.teacher = teacher.eval()
        self.use_kd = use_kd

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """The loss of a student's outputs.

        Raises:
            ValueError: the vocabularies differ in size.
        """
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs.logits
        _check_vocabularies(logits.shape[-1], self.teacher.get_input_embeddings().weight.shape[0])
        real = labels != IGNORED
        with torch.no_grad():
            ids = labels.masked_fill(~real, 0)
            teacher = self.teacher(input_ids=ids, attention_mask=real.long(), use_cache=False).logits
        following = F.pad(labels[:, 1:], (0, 1), value=IGNORED).masked_fill(~real, IGNORED)
        return distillation_loss(logits, teacher, following, use_kd=self.use_kd, count=num_items_in_batch)


def _check_vocabularies(student: int, teacher: int) -> None:
    if student != teacher:
        raise ValueError(
            f"The student has {student} tokens and the teacher {teacher}: distillation needs one vocabulary, "
            "so give the student the teacher's tokenizer."
        )

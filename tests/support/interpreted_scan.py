"""What the tests of scans in Triton's interpreter share: speed, and memory that nobody has written."""

import numpy as np
import pytest
import torch


def hasten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter combine whole slices of an associative scan, where it combines entry by entry.

    The function that combines is the kernel's own either way, and so is the order along the axis.
    """
    from triton.runtime import interpreter

    def scan(self, inputs):
        def slices(i):
            return tuple(self.to_tensor(np.take(x.handle.data, i, axis=self.axis), x.dtype) for x in inputs)

        so_far, found = slices(0), [[] for _ in inputs]
        for i in range(inputs[0].handle.data.shape[self.axis]):
            so_far = self.combine_fn.fn(*so_far, *slices(i)) if i else so_far
            for column, x in zip(found, so_far, strict=True):
                column.append(x.handle.data)
        stacked = (np.stack(column, axis=self.axis) for column in found)
        return [self.to_tensor(column, x.dtype) for column, x in zip(stacked, inputs, strict=True)]

    monkeypatch.setattr(interpreter.ScanOps, "generic_scan", scan)


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill whatever ``torch.empty`` makes with NaN: what a kernel forgets to write becomes visible."""
    empty = torch.empty

    def filled(*size, **options):
        made = empty(*size, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", filled)

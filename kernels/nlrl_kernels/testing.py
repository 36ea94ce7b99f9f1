"""Helpers for kernel tests: one way to compare, one way to poison."""

import torch


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float, name: str = "result") -> None:
    """Fail unless ``max |actual - expected| <= tolerance * max |expected|``, both finite and of one shape.

    Raises:
        AssertionError: with the error and the place of the largest difference.
    """
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if expected.numel() == 0:
        return
    wide, reference = actual.double(), expected.double()
    assert bool(torch.isfinite(reference).all()), f"{name}: the reference itself is not finite"
    assert bool(torch.isfinite(wide).all()), f"{name}: {int((~torch.isfinite(wide)).sum())} entries are not finite"
    difference = (wide - reference).abs()
    error = float(difference.max() / reference.abs().max().clamp(min=1e-12))
    place = divmod_index(int(difference.argmax()), expected.shape)
    assert error <= tolerance, f"{name}: relative error {error:.2e} > {tolerance:.2e}, largest at {place}"


RATIO = 4.0
"""How many times the reference's own rounding error a kernel's may be, where that is more than the tolerance."""


def assert_as_accurate(
    actual: torch.Tensor, reference: torch.Tensor, exact: torch.Tensor, tolerance: float, name: str = "result"
) -> None:
    """As `assert_near` to ``exact`` (the definition in float64), or else as near as the reference comes, `RATIO` times.

    Random inputs are now and then ill conditioned: then no order of summing is within the tolerance, the reference's in
    the same dtype as little as the kernel's. ``reference`` is that one.
    """
    scale = exact.detach().double().abs().max().clamp(min=1e-12) if exact.numel() else torch.ones(())
    own = (reference.detach().double() - exact.detach().double()).abs().max() / scale if exact.numel() else 0.0
    assert_near(actual.detach(), exact.detach(), max(tolerance, RATIO * float(own)), name)


def divmod_index(flat: int, shape: torch.Size) -> tuple[int, ...]:
    """Index into a tensor of this shape of its ``flat``-th entry."""
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), shape))


def poisoned(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    """A tensor full of NaN: whatever a kernel forgets to write, or reads without right, becomes visible."""
    return torch.full(shape, float("nan"), dtype=dtype, device=device)

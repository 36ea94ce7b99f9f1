"""The Triton scan against the reference: forward, every gradient, packed rows, one-token steps."""

from typing import Any

import pytest
import torch

import nlrl_kernels
from nlrl_kernels.mamba_scan.tolerance import BACKWARD, FORWARD
from nlrl_kernels.testing import assert_near, poisoned

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
# (batch, time, channels, states): time below, at and past the chunk of 16; channels past one block of 32; odd states.
SHAPES = [(1, 1, 3, 1), (2, 5, 7, 8), (1, 16, 40, 16), (2, 35, 5, 3)] + ([(8, 272, 256, 16)] if GPU else [])


def case(batch, time, channels, states, gated=True, dtype=torch.float32, seed=0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    tensors = {
        "u": normal(batch, time, channels).to(dtype),
        "delta": torch.nn.functional.softplus(normal(batch, time, channels)).to(dtype),
        "A": -torch.exp(normal(channels, states)),
        "B": normal(batch, time, states).to(dtype),
        "C": normal(batch, time, states).to(dtype),
        "D": normal(channels),
        "z": normal(batch, time, channels).to(dtype) if gated else None,
        "start": normal(batch, channels, states) if gated else None,
    }
    return {name: None if x is None else x.to(DEVICE) for name, x in tensors.items()}


def run(implementation, tensors, gradients):
    leaves: dict[str, Any] = {n: None if x is None else x.clone().requires_grad_(gradients) for n, x in tensors.items()}
    with nlrl_kernels.use_implementation(implementation):
        y, final = nlrl_kernels.selective_scan(*leaves.values())
    results = {"y": y.detach(), "final": final.detach()}
    if gradients:
        generator = torch.Generator().manual_seed(9)
        weights = [torch.randn(x.shape, generator=generator).to(x) for x in (y, final)]
        ((y * weights[0]).sum() + (final * weights[1]).sum()).backward()
        results |= {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf is not None}
    return results


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_gradients_equal_the_reference(shape, gated):
    tensors = case(*shape, gated=gated)
    expected, actual = run("reference", tensors, True), run("triton", tensors, True)
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        assert_near(actual[name], value, (BACKWARD if name.startswith("d") else FORWARD)[torch.float32], name)


def test_without_gradients_the_result_is_the_same():
    tensors = case(2, 20, 9, 4)
    for name, value in run("reference", tensors, False).items():
        assert_near(run("triton", tensors, False)[name], value, FORWARD[torch.float32], name)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_inputs(dtype):
    tensors = case(2, 50, 70, 16, dtype=dtype)
    expected, actual = run("reference", tensors, True), run("triton", tensors, True)
    for name, value in expected.items():
        assert_near(actual[name], value, (BACKWARD if name.startswith("d") else FORWARD)[dtype], name)


def test_reference_gradients_are_those_of_finite_differences():
    tensors = {n: x.double().cpu() for n, x in case(1, 4, 2, 3).items()}
    leaves = [x.requires_grad_() for x in tensors.values()]
    with nlrl_kernels.use_implementation("reference"):
        assert torch.autograd.gradcheck(nlrl_kernels.selective_scan, leaves)


def packed(lengths, channels=37, states=8, seed=0):
    tensors = case(1, max(1, sum(lengths)), channels, states, seed=seed)
    tokens = {n: tensors[n][0] for n in ("u", "delta", "B", "C", "z")}
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=DEVICE)
    return tensors, tokens, starts


def varlen(implementation, tensors, tokens, starts, states, slots, has_state, start):
    out = poisoned(*tokens["u"].shape, device=DEVICE)
    with nlrl_kernels.use_implementation(implementation):
        nlrl_kernels.selective_scan_varlen(
            tokens["u"],
            tokens["delta"],
            tensors["A"],
            tokens["B"],
            tokens["C"],
            tensors["D"],
            starts_R1=starts,
            states_SCN=states,
            slots_R=slots,
            has_state_R=has_state,
            start_CN=start,
            z_TC=tokens["z"],
            out_TC=out,
        )
    return out


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_packed_rows_equal_whole_sequences(implementation):
    lengths, slots = [3, 1, 7], torch.tensor([4, 0, 2], dtype=torch.int32, device=DEVICE)
    tensors, tokens, starts = packed(lengths)
    start = tensors["start"][0]
    known = torch.randn(37, 8, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    # Slots lie in a wider buffer, as in vLLM's pages; everything not given to a row is NaN and must stay so.
    states = poisoned(6, 2, 37, 8, device=DEVICE)[:, 1]
    states[0] = known
    has_state = torch.tensor([False, True, False], device=DEVICE)
    out = varlen(implementation, tensors, tokens, starts, states, slots, has_state, start)
    for row, (length, slot) in enumerate(zip(lengths, slots.tolist(), strict=True)):
        span = slice(int(starts[row]), int(starts[row]) + length)
        with nlrl_kernels.use_implementation("reference"):
            y, final = nlrl_kernels.selective_scan(
                tokens["u"][None, span],
                tokens["delta"][None, span],
                tensors["A"],
                tokens["B"][None, span],
                tokens["C"][None, span],
                tensors["D"],
                tokens["z"][None, span],
                (known if row == 1 else start)[None],
            )
        assert_near(out[span], y[0], FORWARD[torch.float32], f"row {row}")
        assert_near(states[slot], final[0], FORWARD[torch.float32], f"state of row {row}")
    assert torch.isnan(states[[1, 3, 5]]).all()


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_steps_and_chunks_continue_a_sequence(implementation):
    tensors, tokens, _ = packed([9])
    start = tensors["start"][0]
    whole_states, states = poisoned(2, 37, 8, device=DEVICE), poisoned(2, 37, 8, device=DEVICE)
    slot, no, yes = torch.tensor([1], device=DEVICE), torch.tensor([False], device=DEVICE), torch.tensor([True])
    bounds = torch.tensor([0, 9], device=DEVICE)
    whole = varlen(implementation, tensors, tokens, bounds, whole_states, slot, no, start)
    parts = []
    for begin, end in ((0, 4), (4, 7)):
        part = {n: x[begin:end] for n, x in tokens.items()}
        bounds = torch.tensor([0, end - begin], device=DEVICE)
        known = yes.to(DEVICE) if begin else no
        parts.append(varlen(implementation, tensors, part, bounds, states, slot, known, start))
    for t in (7, 8):
        # A padding row (slot -1), as CUDA graphs have them, changes nothing.
        step = {n: torch.cat([x[t : t + 1], x[:1]]) for n, x in tokens.items()}
        with nlrl_kernels.use_implementation(implementation):
            y = nlrl_kernels.selective_state_update(
                step["u"],
                step["delta"],
                tensors["A"],
                step["B"],
                step["C"],
                tensors["D"],
                states_SCN=states,
                slots_R=torch.tensor([[1, 0], [-1, 0]], device=DEVICE)[:, 0],
                z_RC=step["z"],
            )
        parts.append(y[:1])
    assert_near(torch.cat(parts), whole, FORWARD[torch.float32])
    assert_near(states[1], whole_states[1], FORWARD[torch.float32])
    assert torch.isnan(states[0]).all()


def test_an_unknown_implementation_is_refused():
    with (
        pytest.raises(ValueError, match="choose 'triton' or 'reference'"),
        nlrl_kernels.use_implementation("cuda"),  # type: ignore[arg-type]
    ):
        pass

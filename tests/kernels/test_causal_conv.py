"""The convolution with states: Triton against the reference, and both against one long convolution."""

import pytest
import torch

import nlrl_kernels
from nlrl_kernels.causal_conv.tolerance import FORWARD
from nlrl_kernels.testing import assert_near, poisoned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = FORWARD[torch.float32]


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
@pytest.mark.parametrize(("channels", "width"), [(5, 4), (130, 4), (7, 2), (3, 6)])
def test_rows_with_states_equal_one_long_convolution(implementation, channels, width):
    past, lengths = width - 1, [1, 2, 35, 4]
    starts = torch.tensor([0, 1, 3, 38, 42], dtype=torch.int32, device=DEVICE)
    # The inputs are a slice of a wider projection, and states lie in wider pages, as in vLLM.
    x = normal(sum(lengths), channels + 3, seed=0)[:, :channels]
    weight, bias, start = normal(channels, width, seed=1), normal(channels, seed=2), normal(past, channels, seed=3)
    states = poisoned(7, past, channels + 1, device=DEVICE)[:, :, 1:]
    known = normal(past, channels, seed=4)
    states[5], states[1] = known, known + 1
    slots = torch.tensor([5, 1, 0, 6], dtype=torch.int32, device=DEVICE)
    has_state = torch.tensor([True, True, False, False], device=DEVICE)
    out = poisoned(len(x), channels, device=DEVICE)
    with nlrl_kernels.use_implementation(implementation):
        nlrl_kernels.causal_conv1d_varlen(
            x, weight, bias, starts_R1=starts, states_SKC=states, slots_R=slots, has_state_R=has_state,
            start_KC=start, out_TC=out,
        )  # fmt: skip
    for row, before in enumerate([known, known + 1, start, start]):
        span = slice(int(starts[row]), int(starts[row + 1]))
        raw = torch.cat([before, x[span]])
        expected = torch.nn.functional.silu(
            torch.nn.functional.conv1d(raw.T[None], weight[:, None], bias, groups=channels)[0].T
        )
        assert_near(out[span], expected, TOLERANCE, f"row {row}")
        assert torch.equal(states[slots[row]], raw[len(raw) - past :])
    assert torch.isnan(states[[2, 3, 4]]).all()


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_steps_equal_the_packed_form(implementation):
    weight, bias, x = normal(9, 4, seed=1), normal(9, seed=2), normal(6, 9, seed=0)
    start = normal(3, 9, seed=3)
    slot, no = torch.tensor([1], device=DEVICE), torch.tensor([False], device=DEVICE)
    states, whole_states = poisoned(2, 3, 9, device=DEVICE), poisoned(2, 3, 9, device=DEVICE)
    with nlrl_kernels.use_implementation(implementation):
        whole = nlrl_kernels.causal_conv1d_varlen(
            x, weight, bias, starts_R1=torch.tensor([0, 6], device=DEVICE), states_SKC=whole_states, slots_R=slot,
            has_state_R=no, start_KC=start,
        )  # fmt: skip
        states[1] = start
        rows = torch.tensor([[1, 0], [-1, 0]], device=DEVICE)[:, 0]  # a column, as in vLLM; the second row is padding
        parts = [
            nlrl_kernels.causal_conv1d_update(torch.stack([x[t], x[0]]), weight, bias, states_SKC=states, slots_R=rows)[
                :1
            ]
            for t in range(6)
        ]
    assert_near(torch.cat(parts), whole, TOLERANCE)
    assert torch.equal(states[1], whole_states[1])
    assert torch.isnan(states[0]).all()

"""The scan under vLLM as it runs on a GPU, here in Triton's interpreter, against each sequence scanned whole."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import nlrl_kernels
from nlrl_kernels.testing import assert_near, poisoned
from tests.support.interpreted_scan import hasten

pytest.importorskip("triton")
pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

CHANNELS, STATES, RANK, PAST, EPS = 6, 4, 5, 3, 1e-6


@pytest.fixture
def mixer(monkeypatch) -> Any:
    """What ``_scan_with_kernels`` asks of a mixer, with random weights; nothing of it is vLLM's but the class."""
    from nlrl_backbones.hymba import vllm_mixer

    hasten(monkeypatch)
    monkeypatch.setattr(vllm_mixer, "cpu_loops", lambda: False)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    into, out_of = normal(RANK + 2 * STATES, CHANNELS), normal(CHANNELS, RANK)
    mixer = SimpleNamespace(
        config=SimpleNamespace(mamba_dt_rank=RANK, mamba_d_state=STATES, rms_norm_eps=EPS),
        x_proj=lambda u: (u @ into.T, None),
        dt_proj=lambda dt: (dt @ out_of.T, None),
        conv1d=SimpleNamespace(weight=normal(CHANNELS, 1, PAST + 1), bias=normal(CHANNELS)),
        A=-torch.exp(normal(CHANNELS, STATES)),
        D=normal(CHANNELS),
        start_conv_KI=normal(PAST, CHANNELS),
        start_scan=normal(CHANNELS, STATES),
        kv_cache=(poisoned(6, PAST, CHANNELS), poisoned(6, CHANNELS, STATES)),
    )
    for name, width in (("dt", RANK), ("B", STATES), ("C", STATES)):
        setattr(mixer, f"{name}_layernorm", SimpleNamespace(weight=normal(width)))
    mixer.selection = vllm_mixer.HymbaMixer.selection.__get__(mixer)
    mixer.scan = vllm_mixer.HymbaMixer._scan_with_kernels.__get__(mixer)
    return mixer


def whole(mixer, x_TI, gate_TI):
    """The output of one sequence from its first token on."""
    raw = torch.cat([mixer.start_conv_KI, x_TI]).T[None]
    u = F.silu(F.conv1d(raw, mixer.conv1d.weight, mixer.conv1d.bias, groups=CHANNELS)[0].T)
    parts = mixer.x_proj(u)[0].split([RANK, STATES, STATES], dim=-1)
    norms = (mixer.dt_layernorm, mixer.B_layernorm, mixer.C_layernorm)
    dt, B, C = (F.rms_norm(p, p.shape[-1:], n.weight, EPS) for p, n in zip(parts, norms, strict=True))
    delta, state, ys = F.softplus(mixer.dt_proj(dt)[0]), mixer.start_scan, []
    for t in range(len(u)):
        state = torch.exp(delta[t, :, None] * mixer.A) * state + (delta[t] * u[t])[:, None] * B[t]
        ys.append(state @ C[t] + mixer.D * u[t])
    return torch.stack(ys) * F.silu(gate_TI)


def step(decodes, prefills):
    """vLLM's metadata of (slot) for decodes and (slot, tokens, continues) for prefills."""
    starts = torch.tensor([0, *(n for _, n, _ in prefills)]).cumsum(0).to(torch.int32)
    return SimpleNamespace(
        num_decode_tokens=len(decodes),
        num_prefill_tokens=int(starts[-1]),
        num_prefills=len(prefills),
        state_indices_tensor_d=torch.tensor([[slot, 0] for slot in decodes], dtype=torch.int32).view(-1, 2),
        state_indices_tensor_p=torch.tensor([slot for slot, _, _ in prefills], dtype=torch.int32),
        query_start_loc_p=starts,
        has_initial_states_p=torch.tensor([continues for _, _, continues in prefills]),
        longest=max([1, *(n for _, n, _ in prefills)]),
    )


def test_prefills_in_chunks_and_decodes_equal_sequences_scanned_whole(mixer):
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randn(n, 2 * CHANNELS, generator=generator) for n in (5, 6)]
    found: list[list[torch.Tensor]] = [[], []]
    # First sequence: 3 tokens, then 2 decodes; second: 1 token, then 4 beside a decode, then a decode.
    plan = [
        (step([], [(4, 3, False), (2, 1, False)]), [(0, 0, 3), (1, 0, 1)]),
        (step([4], [(2, 4, True)]), [(0, 3, 4), (1, 1, 5)]),
        (step([4, 2], []), [(0, 4, 5), (1, 5, 6)]),
    ]
    for metadata, parts in plan:
        given = torch.cat([sequences[i][begin:end] for i, begin, end in parts] + [torch.zeros(2, 2 * CHANNELS)])
        output = poisoned(len(given), CHANNELS)  # the last two tokens are padding
        with nlrl_kernels.use_implementation("triton"):
            mixer.scan(given, output, metadata)
        assert torch.isnan(output[-2:]).all()
        for (i, begin, end), rows in zip(parts, output[:-2].split([e - b for _, b, e in parts]), strict=True):
            assert len(rows) == end - begin
            found[i].append(rows)
    for rows, sequence in zip(found, sequences, strict=True):
        assert_near(torch.cat(rows), whole(mixer, *sequence.split(CHANNELS, dim=-1)), 1e-5)
    assert torch.isnan(mixer.kv_cache[1][[0, 1, 3, 5]]).all()

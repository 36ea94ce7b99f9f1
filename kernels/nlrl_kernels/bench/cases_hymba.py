"""Hymba-1.5B's scan: 3,200 channels of 16 states. Its attention is in ``cases_window_attention``."""

# Inputs are kept in lists and unpacked into operators:
# pyright: reportCallIssue=false

from collections.abc import Iterator

import torch
import torch.nn.functional as F

import nlrl_kernels
from nlrl_kernels.bench.case import Case, Check, Plan, Run, Size, nbytes
from nlrl_kernels.mamba_scan import reference as scan_reference
from nlrl_kernels.mamba_scan import tolerance as scan_tolerance

_STATES = 16


def plans(size: Size) -> Iterator[Plan]:
    """Training, prefill and decode."""
    for batch, time in [(2, 5)] if size.tiny else [(1, 2048), (16, 2048), (1, 32768)]:
        yield Plan("selective_scan_varlen", f"{batch} x {time}", lambda b=batch, t=time: _prefill(size, b, t))
        if size.quick:
            break
    for rows in size.pick([64, 1, 256], [3]):
        yield Plan("selective_state_update", f"{rows} rows", lambda r=rows: _update(size, r))
    for batch, time in [(2, 5)] if size.tiny else [(4, 2048)]:
        yield Plan(
            "selective_scan", f"{batch} x {time}, forward and backward", lambda b=batch, t=time: _scan(size, b, t)
        )


def _scan_inputs(size: Size, *leading: int) -> dict[str, torch.Tensor]:
    channels = 8 if size.tiny else 3200
    return {
        "u": size.normal(*leading, channels),
        "delta": F.softplus(size.normal(*leading, channels)),
        "A": -torch.rand(channels, _STATES, device=size.device) - 0.1,
        "B": size.normal(*leading, _STATES),
        "C": size.normal(*leading, _STATES),
        "D": size.normal(channels, dtype=torch.float32),
    }


def _prefill(size: Size, batch: int, time: int) -> Case:
    inputs = _scan_inputs(size, batch * time)
    u, A = inputs["u"], inputs["A"]
    starts = torch.arange(batch + 1, dtype=torch.int32, device=size.device) * time
    states = torch.zeros(batch + 1, *A.shape, device=size.device)
    slots = torch.arange(1, batch + 1, dtype=torch.int32, device=size.device)
    fresh = torch.zeros(batch, dtype=torch.bool, device=size.device)
    rows = {"starts_R1": starts, "slots_R": slots, "has_state_R": fresh, "start_CN": torch.zeros_like(A)}

    def run() -> torch.Tensor:
        return nlrl_kernels.selective_scan_varlen(*inputs.values(), states_SCN=states, **rows)

    def check() -> Iterator[Check]:
        found = run()
        few = min(time, 256)  # the reference is a loop over time
        of_first = {key: x if key in "AD" else x[:few].float()[None] for key, x in inputs.items()}
        expected, _ = scan_reference.selective_scan(*of_first.values())
        yield f"first {few} tokens", found[:few], expected[0], scan_tolerance.FORWARD[size.dtype]

    def vllm() -> Run:
        from vllm.model_executor.layers.mamba.ops.mamba_ssm import selective_scan_fn

        u_CT, delta_CT = (inputs[key].t().contiguous() for key in ("u", "delta"))
        B, C = (inputs[key].t().contiguous()[None] for key in ("B", "C"))
        return lambda: selective_scan_fn(
            u_CT, states, delta_CT, A, B, C, inputs["D"], None, query_start_loc=starts, cache_indices=slots,
            has_initial_state=fresh,
        )  # fmt: skip

    moved = nbytes(*inputs.values()) + nbytes(u) + nbytes(states)
    return Case(run, check, moved, alternatives={"vLLM selective_scan_fn": vllm})


def _update(size: Size, rows: int) -> Case:
    inputs = _scan_inputs(size, rows)
    slots = torch.arange(1, rows + 1, dtype=torch.int32, device=size.device)
    states = size.normal(rows + 1, *inputs["A"].shape, dtype=torch.float32)

    def run() -> torch.Tensor:
        return nlrl_kernels.selective_state_update(*inputs.values(), states_SCN=states, slots_R=slots)

    def check() -> Iterator[Check]:
        before = states.clone()
        found = run()
        wide = [x.float() for x in inputs.values()]
        expected = scan_reference.selective_state_update(*wide, states_SCN=before, slots_R=slots)
        yield "output", found, expected, scan_tolerance.FORWARD[size.dtype]
        yield "states", states, before, scan_tolerance.FORWARD[torch.float32]

    def vllm() -> Run:
        from vllm.model_executor.layers.mamba.ops.mamba_ssm import selective_state_update

        out = torch.empty_like(inputs["u"])
        return lambda: selective_state_update(states, *inputs.values(), None, state_batch_indices=slots, out=out)

    moved = 2 * rows * states[0].numel() * 4 + nbytes(*inputs.values(), inputs["u"])
    return Case(run, check, moved, alternatives={"vLLM selective_state_update": vllm})


def _scan(size: Size, batch: int, time: int) -> Case:
    inputs = {key: x.float().requires_grad_() for key, x in _scan_inputs(size, batch, time).items()}
    dy = torch.randn_like(inputs["u"])

    def step(time: int) -> tuple[torch.Tensor, ...]:
        short = [x if key in "AD" else x[:, :time] for key, x in inputs.items()]
        return torch.autograd.grad(nlrl_kernels.selective_scan(*short)[0], list(inputs.values()), dy[:, :time])

    def check() -> Iterator[Check]:
        few = min(time, 128)
        short = [x if key in "AD" else x[:, :few] for key, x in inputs.items()]
        exact = torch.autograd.grad(scan_reference.selective_scan(*short)[0], list(inputs.values()), dy[:, :few])
        for key, found, expected in zip(inputs, step(few), exact, strict=True):
            yield f"gradient of {key}", found, expected, scan_tolerance.BACKWARD[torch.float32]

    def compiled() -> Run:
        definition = torch.compile(scan_reference.selective_scan, dynamic=False)
        few = min(time, 128)  # a loop over time: its compilation takes as long as it has steps
        short = [x if key in "AD" else x[:, :few] for key, x in inputs.items()]
        return lambda: torch.autograd.grad(definition(*short)[0], list(inputs.values()), dy[:, :few])

    moved = 3 * nbytes(*inputs.values()) + 2 * nbytes(dy)
    return Case(lambda: step(time), check, moved, alternatives={"torch.compile, 128 tokens of it only": compiled})

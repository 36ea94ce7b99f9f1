"""Hymba-1.5B's scan: 3,200 channels of 16 states, and the norms around it."""

# Inputs are kept in lists and unpacked into operators:
# pyright: reportCallIssue=false

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

import nlrl_kernels
from nlrl_kernels.bench.case import Case, Check, Plan, Run, Size, nbytes
from nlrl_kernels.hymba_norms import reference as norm_reference
from nlrl_kernels.hymba_norms import tolerance as norm_tolerance
from nlrl_kernels.mamba_scan import reference, tolerance

_STATES, _RANK, _EPS = 16, 100, 1e-6


def plans(size: Size) -> Iterator[Plan]:
    """Prefill, decode and training, and the norms forward and backward."""
    prefills = [(1, 2048), (16, 2048), (1, 32768), (1, 8192), (16, 8192), (16, 32768)]
    for batch, time in [(2, 9)] if size.tiny else prefills[:1] if size.quick else prefills:
        yield Plan("selective_scan_varlen", f"{batch} x {time}", lambda b=batch, t=time: prefill_case(size, b, t))
    for rows in size.pick([64, 1, 256], [3]):
        yield Plan("selective_state_update", f"{rows} rows", lambda r=rows: update_case(size, r))
    for batch, time in [(2, 5)] if size.tiny else [(4, 128), (4, 2048)]:
        build = lambda b=batch, t=time: training_case(size, b, t)  # noqa: E731
        yield Plan("selective_scan", f"{batch} x {time}, forward and backward", build)
    for rows in size.pick([8192, 64], [5]):
        for name in ("mean_of_norms", "selection_norms"):
            yield Plan(name, f"{rows} rows", lambda n=name, r=rows: _norms(size, n, r, False))
            if rows > 64 or size.tiny:
                yield Plan(f"{name}_backward", f"{rows} rows", lambda n=name, r=rows: _norms(size, n, r, True))


def _inputs(size: Size, *leading: int) -> dict[str, torch.Tensor]:
    channels = 8 if size.tiny else 3200
    return {
        "u": size.normal(*leading, channels),
        "delta": F.softplus(size.normal(*leading, channels)),
        "A": -torch.rand(channels, _STATES, device=size.device) - 0.1,
        "B": size.normal(*leading, _STATES),
        "C": size.normal(*leading, _STATES),
        "D": size.normal(channels, dtype=torch.float32),
    }


def prefill_case(size: Size, batch: int, time: int) -> Case:
    """Fresh rows of one length, in slots as vLLM has them."""
    inputs = _inputs(size, batch * time)
    u, A = inputs["u"], inputs["A"]
    starts = torch.arange(batch + 1, dtype=torch.int32, device=size.device) * time
    states = torch.zeros(batch + 1, *A.shape, device=size.device)
    slots = torch.arange(1, batch + 1, dtype=torch.int32, device=size.device)
    fresh = torch.zeros(batch, dtype=torch.bool, device=size.device)
    rows = {"starts_R1": starts, "slots_R": slots, "has_state_R": fresh, "start_CN": torch.zeros_like(A)}

    def run() -> torch.Tensor:
        return nlrl_kernels.selective_scan_varlen(*inputs.values(), states_SCN=states, longest=time, **rows)

    def check() -> Iterator[Check]:
        states.fill_(float("nan"))
        found = run().view(batch, time, -1)
        few = min(time, 256)  # the reference is a loop over time
        whole = {key: x if key in "AD" else x.view(batch, time, -1) for key, x in inputs.items()}
        expected, _ = reference.selective_scan(*_span(whole, slice(0, few)).values())
        yield f"first {few} tokens", found[:, :few], expected, tolerance.FORWARD[size.dtype]
        # Decays of A <= -0.1 by steps of 0.8 and more: what lies 512 tokens back has left nothing in float32.
        late = _span(whole, slice(max(0, time - 512), time))
        expected, final = reference.selective_scan(*late.values())
        yield f"last {few} tokens", found[:, -few:], expected[:, -few:], tolerance.FORWARD[size.dtype]
        yield "states", states[1:], final, tolerance.FORWARD[torch.float32]

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


def _span(inputs: dict[str, torch.Tensor], span: slice) -> dict[str, torch.Tensor]:
    return {key: x if key in "AD" else x[:, span].float() for key, x in inputs.items()}


def update_case(size: Size, rows: int) -> Case:
    """One token for each of so many rows, whose states lie in slots."""
    inputs = _inputs(size, rows)
    slots = torch.randperm(rows, device=size.device).add(1).to(torch.int32)
    states = size.normal(rows + 1, *inputs["A"].shape, dtype=torch.float32)

    def run() -> torch.Tensor:
        return nlrl_kernels.selective_state_update(*inputs.values(), states_SCN=states, slots_R=slots)

    def check() -> Iterator[Check]:
        before = states.clone()
        found = run()
        wide = [x.float() for x in inputs.values()]
        expected = reference.selective_state_update(*wide, states_SCN=before, slots_R=slots)
        yield "output", found, expected, tolerance.FORWARD[size.dtype]
        yield "states", states, before, tolerance.FORWARD[torch.float32]

    def vllm() -> Run:
        from vllm.model_executor.layers.mamba.ops.mamba_ssm import selective_state_update

        out = torch.empty_like(inputs["u"])
        return lambda: selective_state_update(states, *inputs.values(), None, state_batch_indices=slots, out=out)

    moved = 2 * rows * states[0].numel() * 4 + nbytes(*inputs.values(), inputs["u"])
    return Case(run, check, moved, alternatives={"vLLM selective_state_update": vllm})


def training_case(size: Size, batch: int, time: int) -> Case:
    """Forward and all gradients, in float32."""
    inputs = {key: x.float().requires_grad_() for key, x in _inputs(size, batch, time).items()}
    dy = torch.randn_like(inputs["u"])

    def step(time: int) -> tuple[torch.Tensor, ...]:
        short = [x if key in "AD" else x[:, :time] for key, x in inputs.items()]
        return torch.autograd.grad(nlrl_kernels.selective_scan(*short)[0], list(inputs.values()), dy[:, :time])

    def check() -> Iterator[Check]:
        few = min(time, 128)
        short = [x if key in "AD" else x[:, :few] for key, x in inputs.items()]
        exact = torch.autograd.grad(reference.selective_scan(*short)[0], list(inputs.values()), dy[:, :few])
        for key, found, expected in zip(inputs, step(few), exact, strict=True):
            yield f"gradient of {key}", found, expected, tolerance.BACKWARD[torch.float32]

    def compiled() -> Run:
        definition = torch.compile(reference.selective_scan, dynamic=False)
        return lambda: torch.autograd.grad(definition(*inputs.values())[0], list(inputs.values()), dy)

    moved = 3 * nbytes(*inputs.values()) + 2 * nbytes(dy)
    # A loop over time: its compilation takes as long as it has steps, so there is one for the short rows alone.
    alternatives = {"torch.compile": compiled} if time <= 128 else {}
    return Case(lambda: step(time), check, moved, alternatives=alternatives)


def _norms(size: Size, name: str, rows: int, backward: bool) -> Case:
    """Forward, or forward and backward together: torch.compile cuts the work between the two as it likes."""
    width, rank = (32, 5) if size.tiny else (3200, _RANK)
    if name == "mean_of_norms":
        data, weights = [size.normal(rows, width) for _ in range(2)], [size.normal(width) for _ in range(2)]
    else:
        data, weights = [size.normal(rows, rank + 2 * _STATES)], [size.normal(n) for n in (rank, _STATES, _STATES)]
    inputs = [x.requires_grad_(backward) for x in (*data, *weights)]
    operator, definition = getattr(nlrl_kernels, name), getattr(norm_reference, name)
    results = _tuple(definition(*(x.detach() for x in inputs), _EPS))
    gradients = [torch.randn_like(result) for result in results]

    def step(function: Callable[..., object], given: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        found = _tuple(function(*given, _EPS))
        if not backward:
            return found
        return torch.autograd.grad(found, given, [dy.to(y.dtype) for dy, y in zip(gradients, found, strict=True)])

    def check() -> Iterator[Check]:
        exact = step(definition, [x.detach().double().requires_grad_(backward) for x in inputs])
        allowed = norm_tolerance.BACKWARD if backward else norm_tolerance.FORWARD
        for i, (found, expected) in enumerate(zip(step(operator, inputs), exact, strict=True)):
            yield f"{'gradient' if backward else 'result'} {i}", found, expected, allowed[size.dtype]

    def compiled() -> Run:
        function = torch.compile(definition, dynamic=False)
        return lambda: step(function, inputs)

    moved = nbytes(*inputs, *results) + (nbytes(*inputs, *inputs, *gradients) if backward else 0)
    return Case(lambda: step(operator, inputs), check, moved, alternatives={"torch.compile": compiled})


def _tuple(found: object) -> tuple[torch.Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)  # type: ignore[return-value]

"""Selective scan in Triton, forward, backward and one token at a time; equations and axes in ``reference.py``.

How work is cut up is decided here from shapes alone: nothing is tuned while operators run, nothing is read back from
the GPU. ``nlrl_kernels.bench.sweep`` compares tiles.
"""

# Triton types neither launches nor its own helpers:
# pyright: reportCallIssue=false, reportArgumentType=false, reportReturnType=false

from typing import Any, NamedTuple

import torch
import triton

from nlrl_kernels.mamba_scan import backward, kernels

_SCHEDULERS = 132 * 4
"""Schedulers of an H100: each issues the exponentials of one warp, 32 channels, at a time."""

_PROGRAMS = 4 * _SCHEDULERS
"""Warps that an H100 holds of the scan, and so chunks that a call is cut into."""

_TRAINING_CHUNK = 64
"""Tokens between the states that training keeps: a byte a token and channel at 16 states in float32."""


class Tile(NamedTuple):
    """How much a program takes at a time: tokens, channels, states in registers together; warps, registers a thread."""

    tokens: int
    channels: int
    group: int
    warps: int
    registers: int | None = None


def scan_tile() -> Tile:
    """Of the scan: 16 warps an SM, and instructions that take no longer to issue than their exponentials."""
    return Tile(8, 32, 4, 1, 128)


def gradient_tile() -> tuple[int, int]:
    """(tokens, states) of the gradients in registers together; 32 channels and one warp, as in the scan."""
    return 4, 8


def update_tile(rows: int) -> tuple[int, int, int]:
    """(rows, channels, warps) of a program of the one-token step."""
    return (2, 64, 4) if rows >= 64 else (1, 64, 4)


def chunk_length(rows: int, tokens: int, longest: int, channels: int, tile: Tile) -> int | None:
    """Tokens of a chunk; None where rows are better left whole.

    Counted in warps and tokens a scheduler: a whole row takes its length as many times as warps share a scheduler, and
    no less than 1.3 times, for one warp alone does not hide its own latencies. Chunks take all tokens twice, and what
    two launches more cost, about 100 tokens.
    """
    warps = triton.cdiv(channels, tile.channels) * tile.warps
    whole = longest * max(1.3, triton.cdiv(rows * warps, _SCHEDULERS))
    chunked = 2 * tokens * warps / _SCHEDULERS + 100
    if whole <= chunked:
        return None
    length = max(32, tokens * warps // _PROGRAMS)
    return triton.cdiv(length, tile.tokens) * tile.tokens


class _Scan(NamedTuple):
    """The inputs of a scan, ready to launch: adjacent channels and states, B and C in float32, rows packed."""

    u: torch.Tensor
    delta: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor
    D: torch.Tensor | None
    bias: torch.Tensor | None
    z: torch.Tensor | None
    softplus: bool

    @classmethod
    def of(cls, tokens: tuple[torch.Tensor, ...], A: torch.Tensor, rest: tuple, softplus: bool) -> "_Scan":
        """From (u, delta, B, C) as [T, .] and (D, bias, z)."""
        u, delta, B, C = tokens
        D, bias, z = rest
        D, bias = (x if x is None else x.contiguous() for x in (D, bias))
        # B and C are read by every lane: in float32 no lane converts them, and they are few.
        B, C = (_adjacent(x.float()) for x in (B, C))
        return cls(_adjacent(u), _adjacent(delta), A.float().contiguous(), B, C, D, bias, _adjacent(z), softplus)

    def pointers(self, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As the kernels take them; what is not given is never read."""
        D, bias, z = (self.u if x is None else x for x in (self.D, self.bias, self.z))
        return self.u, self.delta, self.A, self.B, self.C, D, bias, z, y

    def strides(self) -> tuple[int, ...]:
        """From token to token."""
        tokens = (self.u, self.delta, self.B, self.C, self.u if self.z is None else self.z)
        return tuple(x.stride(0) for x in tokens)

    def flags(self) -> dict[str, Any]:
        """What is given, and the number of states."""
        has = {"HAS_BIAS": self.bias is not None, "HAS_D": self.D is not None, "HAS_Z": self.z is not None}
        return has | {"SOFTPLUS": self.softplus, "STATES": self.A.shape[1]}


class _Rows(NamedTuple):
    """Which tokens are a row, where rows start from and where they leave their states.

    ``starts`` is None for rows of equal length: then ``start`` [R, C, N] may be None, and ``states`` is [R, C, N].
    """

    count: int
    length: int
    starts: torch.Tensor | None
    slots: torch.Tensor | None
    has_state: torch.Tensor | None
    start: torch.Tensor | None
    states: torch.Tensor

    def pointers(self) -> tuple[torch.Tensor, ...]:
        return tuple(
            self.states if x is None else x for x in (self.starts, self.slots, self.has_state, self.start, self.states)
        )

    def chunks(self, tokens: int, chunk: int) -> int:
        """Programs that certainly hold every chunk."""
        return self.count * triton.cdiv(self.length, chunk) if self.starts is None else tokens // chunk + self.count


def _adjacent(x: Any) -> Any:
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _groups(states: int, group: int) -> dict[str, int]:
    padded = int(triton.next_power_of_2(states))
    group = min(group, padded)
    return {"GROUP": group, "GROUPS": padded // group}


def _sizes(tile: Tile, channels: int, states: int) -> dict[str, int]:
    """Launch sizes of a tile; no wider than the channels."""
    block = min(tile.channels, int(triton.next_power_of_2(channels)))
    sizes = _groups(states, tile.group) | {"BLOCK_T": tile.tokens, "BLOCK_C": block, "num_warps": tile.warps}
    return sizes if tile.registers is None else sizes | {"maxnreg": tile.registers}


def _run(
    scan: _Scan, rows: _Rows, y: torch.Tensor, chunk: int | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Scan all rows into ``y`` [T, C] and their states.

    Returns:
        The states that chunks start from and the sums of their step sizes, or None where rows are left whole.
    """
    tokens, channels = scan.u.shape
    states = scan.A.shape[1]
    sizes = _sizes(scan_tile(), channels, states)
    blocks = triton.cdiv(channels, sizes["BLOCK_C"])
    even = rows.starts is None
    flags = scan.flags() | sizes | {"EVEN": even, "HAS_START": rows.start is not None}
    numbers = (channels, *scan.strides(), y.stride(0), *rows.states.stride())
    if chunk is None:
        kernels.scan_chunks[(rows.count, blocks)](
            *scan.pointers(y), *rows.pointers(), scan.A, scan.A, rows.count, rows.length, rows.length, *numbers,
            WHOLE=True, LOCAL=False, **flags,
        )  # fmt: skip
        return None, None
    chunks = rows.chunks(tokens, chunk)
    new = {"device": scan.u.device, "dtype": torch.float32}
    local, begun = torch.empty(2, chunks, channels, states, **new)
    totals = torch.empty(chunks, channels, **new)
    for is_local, of_chunks in ((True, local), (False, begun)):
        kernels.scan_chunks[(chunks, blocks)](
            *scan.pointers(y), *rows.pointers(), of_chunks, totals, rows.count, rows.length, chunk, *numbers,
            WHOLE=False, LOCAL=is_local, **flags,
        )  # fmt: skip
        if is_local:
            _join(scan.A, rows, local, totals, begun, chunk)
    return begun, totals


def _join(
    A: torch.Tensor, rows: _Rows, local: torch.Tensor, totals: torch.Tensor, begun: torch.Tensor, chunk: int,
    reverse: bool = False,
) -> None:  # fmt: skip
    channels, states = A.shape
    block = min(128, int(triton.next_power_of_2(A.numel())))
    kernels.join_chunks[(rows.count, triton.cdiv(A.numel(), block))](
        A, *rows.pointers(), local, totals, begun, rows.length, chunk, channels, *rows.states.stride(),
        EVEN=rows.starts is None, HAS_START=rows.start is not None, REVERSE=reverse, STATES=states,
        BLOCK_K=8, BLOCK_E=block, num_warps=4,
    )  # fmt: skip


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        u: torch.Tensor,
        delta: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        D: torch.Tensor | None,
        z: torch.Tensor | None,
        start: torch.Tensor | None,
        bias: torch.Tensor | None,
        softplus: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch, T, channels = u.shape
        packed = tuple(_packed(x) for x in (u, delta, B, C))
        scan = _Scan.of(packed, A, (D, bias, None if z is None else _packed(z)), softplus)
        y = torch.empty(batch, T, channels, dtype=u.dtype, device=u.device)
        final = torch.empty(batch, *A.shape, dtype=torch.float32, device=u.device)
        start32 = None if start is None else start.float().contiguous()
        if T == 0:
            final.zero_() if start32 is None else final.copy_(start32)
        rows = _Rows(batch if T else 0, T, None, None, None, start32, final)
        chunk = _TRAINING_CHUNK
        if not any(ctx.needs_input_grad):
            chunk = chunk_length(batch, batch * T, T, channels, scan_tile())
        kept = _run(scan, rows, y.view(-1, channels), chunk) if rows.count else (None, None)
        ctx.save_for_backward(*scan[:-1], *kept)
        ctx.softplus, ctx.shape = softplus, u.shape
        ctx.dtypes = [None if x is None else x.dtype for x in (u, delta, A, B, C, D, z, start, bias)]
        return y, final

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor, dfinal: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        *inputs, begun, totals = ctx.saved_tensors
        scan = _Scan(*inputs, ctx.softplus)
        found = _gradients(scan, ctx.shape, (begun, totals), dy.contiguous(), dfinal.float().contiguous())
        given = zip(found, ctx.dtypes, strict=True)
        return (*(None if x is None or dtype is None else x.to(dtype) for x, dtype in given), None)


def _packed(x: torch.Tensor) -> torch.Tensor:
    """[B, T, .] as [B T, .], without a copy where rows follow each other at one distance."""
    x = _adjacent(x)
    even = x.shape[0] == 1 or x.stride(0) == x.stride(1) * x.shape[1]
    return x.as_strided((x.shape[0] * x.shape[1], x.shape[2]), x.stride()[1:]) if even else x.flatten(0, 1)


def _gradients(
    scan: _Scan, shape: torch.Size, kept: tuple[torch.Tensor | None, ...], dy: torch.Tensor, dfinal: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z, the start states and the bias."""
    batch, T, channels = shape
    begun, totals = kept
    states, tokens, device = scan.A.shape[1], batch * T, scan.u.device
    new = {"device": device, "dtype": torch.float32}
    if begun is None or totals is None:  # no tokens
        of_tokens = [x.new_zeros(batch, T, x.shape[-1]) for x in (scan.u, scan.delta, scan.B, scan.C)]
        du, ddelta, dB, dC = of_tokens
        rest = [None if x is None else torch.zeros_like(x) for x in (scan.D, scan.bias)]
        dz = None if scan.z is None else torch.zeros_like(du)
        return du, ddelta, torch.zeros_like(scan.A), dB, dC, rest[0], dz, dfinal, rest[1]
    chunk, chunks, sizes = _TRAINING_CHUNK, len(begun), _sizes(scan_tile(), channels, states)
    flags = scan.flags()
    u, delta, A, B, C, D, bias, z, dy = scan.pointers(dy.view(tokens, channels))
    u_t, delta_t, B_t, C_t, z_t = scan.strides()
    local, behind = torch.empty(2, chunks, channels, states, **new)
    without_D = {key: flag for key, flag in flags.items() if key != "HAS_D"} | sizes
    backward.local_gradients[(chunks, triton.cdiv(channels, sizes["BLOCK_C"]))](
        delta, A, C, bias, z, dy, local, T, chunk, channels, delta_t, C_t, z_t, channels, **without_D
    )
    dstart = torch.empty(batch, channels, states, **new)
    _join(A, _Rows(batch, T, None, None, None, dfinal, dstart), local, totals, behind, chunk, reverse=True)
    steps, group = gradient_tile()
    sizes = _groups(states, group) | {"STEPS": steps, "BLOCK_C": sizes["BLOCK_C"], "num_warps": 1}
    blocks = triton.cdiv(channels, sizes["BLOCK_C"])
    programs = min(chunks * blocks, _PROGRAMS)
    padded = sizes["GROUPS"] * sizes["GROUP"] * sizes["BLOCK_C"]
    scratch = torch.empty(programs, 3 + triton.cdiv(chunk, steps), padded, **new)
    du, ddelta = (torch.empty(x.shape, dtype=x.dtype, device=device) for x in (scan.u, scan.delta))
    dz = None if scan.z is None else torch.empty(scan.z.shape, dtype=scan.z.dtype, device=device)
    dB, dC = torch.empty(2, blocks, tokens, states, **new)
    dA, of_channels = torch.empty(chunks, channels, states, **new), torch.empty(2, chunks, channels, **new)
    backward.gradients[(programs,)](
        u, delta, A, B, C, D, bias, z, dy, begun, behind, scratch,
        du, ddelta, dA, dB, dC, of_channels[0], of_channels[1], du if dz is None else dz,
        chunks * blocks, tokens, T, chunk, channels, u_t, delta_t, B_t, C_t, z_t, channels, **flags, **sizes,
    )  # fmt: skip
    whole = (None if x is None else x.view(batch, T, -1) for x in (du, ddelta, dB.sum(0), dC.sum(0), dz))
    du, ddelta, dB, dC, dz = whole
    dD = None if scan.D is None else of_channels[0].sum(0)
    dbias = None if scan.bias is None else of_channels[1].sum(0)
    return du, ddelta, dA.sum(0), dB, dC, dD, dz, dstart, dbias


def selective_scan(
    u_BTC: torch.Tensor,
    delta_BTC: torch.Tensor,
    A_CN: torch.Tensor,
    B_BTN: torch.Tensor,
    C_BTN: torch.Tensor,
    D_C: torch.Tensor | None = None,
    z_BTC: torch.Tensor | None = None,
    start_BCN: torch.Tensor | None = None,
    *,
    bias_C: torch.Tensor | None = None,
    softplus: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``nlrl_kernels.selective_scan``."""
    return _SelectiveScan.apply(  # type: ignore[return-value]
        u_BTC, delta_BTC, A_CN, B_BTN, C_BTN, D_C, z_BTC, start_BCN, bias_C, softplus
    )


def selective_scan_varlen(
    u_TC: torch.Tensor,
    delta_TC: torch.Tensor,
    A_CN: torch.Tensor,
    B_TN: torch.Tensor,
    C_TN: torch.Tensor,
    D_C: torch.Tensor | None,
    *,
    starts_R1: torch.Tensor,
    states_SCN: torch.Tensor,
    slots_R: torch.Tensor,
    has_state_R: torch.Tensor,
    start_CN: torch.Tensor,
    z_TC: torch.Tensor | None = None,
    out_TC: torch.Tensor | None = None,
    bias_C: torch.Tensor | None = None,
    softplus: bool = False,
    longest: int | None = None,
) -> torch.Tensor:
    """See ``nlrl_kernels.selective_scan_varlen``."""
    out = _output(u_TC, out_TC)
    scan = _Scan.of((u_TC, delta_TC, B_TN, C_TN), A_CN, (D_C, bias_C, z_TC), softplus)
    tokens, count = len(u_TC), len(slots_R)
    index = (x.contiguous() for x in (starts_R1, slots_R, has_state_R, start_CN))
    longest = tokens if longest is None else min(longest, tokens)
    if count and tokens:
        chunk = chunk_length(count, tokens, longest, u_TC.shape[1], scan_tile())
        _run(scan, _Rows(count, longest, *index, states_SCN), out, chunk)
    return out


def selective_state_update(
    u_RC: torch.Tensor,
    delta_RC: torch.Tensor,
    A_CN: torch.Tensor,
    B_RN: torch.Tensor,
    C_RN: torch.Tensor,
    D_C: torch.Tensor | None,
    *,
    states_SCN: torch.Tensor,
    slots_R: torch.Tensor,
    z_RC: torch.Tensor | None = None,
    out_RC: torch.Tensor | None = None,
    bias_C: torch.Tensor | None = None,
    softplus: bool = False,
) -> torch.Tensor:
    """See ``nlrl_kernels.selective_state_update``."""
    out = _output(u_RC, out_RC)
    D, bias = (x if x is None else x.contiguous() for x in (D_C, bias_C))
    u, delta, B, C, z = (_adjacent(x) for x in (u_RC, delta_RC, B_RN, C_RN, z_RC))
    scan = _Scan(u, delta, A_CN.float().contiguous(), B, C, D, bias, z, softplus)
    rows, channels = u.shape
    block_r, block_c, warps = update_tile(rows)
    block_c = min(block_c, int(triton.next_power_of_2(channels)))
    if rows:
        kernels.update_states[(triton.cdiv(rows, block_r), triton.cdiv(channels, block_c))](
            *scan.pointers(out), slots_R.contiguous(), states_SCN, rows, channels, *scan.strides(), out.stride(0),
            *states_SCN.stride(), **scan.flags(), BLOCK_N=triton.next_power_of_2(A_CN.shape[1]), BLOCK_R=block_r,
            BLOCK_C=block_c, num_warps=warps,
        )  # fmt: skip
    return out


def _output(u: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    if out is not None and out.stride(-1) != 1:
        raise ValueError("The output of a scan must have adjacent channels: its last stride must be 1.")
    return torch.empty(u.shape, dtype=u.dtype, device=u.device) if out is None else out

"""Time the kernels on a GPU: `python kernels/bench.py`. Each result is compared with the reference before it counts.

The shapes are those of the boxed model (6 layers, 256 scan channels) and of Hymba-1.5B (3,200 channels, 25 heads).
Times are the median of 20 runs between CUDA events, kernel launches included.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator

import torch

from nlrl_kernels import (
    pinned_window_attention,
    selective_scan,
    selective_scan_varlen,
    selective_state_update,
    use_implementation,
)
from nlrl_kernels.mamba_scan import tolerance as scan_tolerance
from nlrl_kernels.testing import assert_near
from nlrl_kernels.window_attention import tolerance as attention_tolerance

Case = tuple[str, Callable[[], torch.Tensor], float]


def milliseconds(run: Callable[[], object], repeats: int = 20) -> float:
    """Median time of one call."""
    times = []
    for _ in range(repeats + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[3:])


def scan_cases(batch: int, time: int, channels: int) -> Iterator[Case]:
    """Training: forward, and forward with backward."""
    states, device = 16, "cuda"
    u, delta, z = (torch.randn(batch, time, channels, device=device) for _ in range(3))
    B, C = (torch.randn(batch, time, states, device=device) for _ in range(2))
    A, D = -torch.rand(channels, states, device=device) - 0.1, torch.randn(channels, device=device)
    inputs = [x.requires_grad_() for x in (u, torch.nn.functional.softplus(delta).detach(), A, B, C, D, z)]

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return selective_scan(*inputs)[0]

    def backward() -> torch.Tensor:
        inputs[1].grad = None
        selective_scan(*inputs)[0].sum().backward()
        assert inputs[1].grad is not None
        return inputs[1].grad

    shape = f"{batch} x {time} tokens, {channels} channels"
    yield f"scan forward, {shape}", forward, scan_tolerance.FORWARD[torch.float32]
    yield f"scan forward and backward, {shape}", backward, scan_tolerance.BACKWARD[torch.float32]


def serving_scan_cases(rows: int, length: int, channels: int) -> Iterator[Case]:
    """Prefill of packed rows, and one decode step."""
    states, device, tokens = 16, "cuda", rows * length
    u, delta = torch.randn(tokens, channels, device=device), torch.rand(tokens, channels, device=device)
    B, C = (torch.randn(tokens, states, device=device) for _ in range(2))
    A, D = -torch.rand(channels, states, device=device) - 0.1, torch.randn(channels, device=device)
    slots = torch.arange(rows, dtype=torch.int32, device=device)
    starts = torch.arange(rows + 1, dtype=torch.int32, device=device) * length
    fresh, start = torch.zeros(rows, dtype=torch.bool, device=device), torch.zeros_like(A)
    pages, decode_pages = (torch.zeros(rows, channels, states, device=device) for _ in range(2))

    def prefill() -> torch.Tensor:
        return selective_scan_varlen(
            u, delta, A, B, C, D, starts_R1=starts, states_SCN=pages, slots_R=slots, has_state_R=fresh, start_CN=start
        )

    def decode() -> torch.Tensor:
        decode_pages.zero_()  # the step writes its state back
        u_RC, delta_RC, B_RN, C_RN = (x[:rows] for x in (u, delta, B, C))
        return selective_state_update(u_RC, delta_RC, A, B_RN, C_RN, D, states_SCN=decode_pages, slots_R=slots)

    shape = f"{rows} rows, {channels} channels"
    yield f"scan prefill, {shape} x {length} tokens", prefill, scan_tolerance.FORWARD[torch.float32]
    yield f"scan decode, {shape}", decode, scan_tolerance.FORWARD[torch.float32]


def attention_case(rows: int, count: int, context: int, window: int | None, dtype: torch.dtype) -> Case:
    """Hymba-1.5B's heads: 25 query, 5 key/value, widths 64 and 128, 128 pinned keys, pages of 16."""
    device, page, kv_heads, group, width_k, width_v, metas = "cuda", 16, 5, 5, 64, 128, 128
    blocks = -(-context // page)
    pages = torch.randn(rows * blocks + 1, page, kv_heads, width_k + width_v, device=device, dtype=dtype)
    table = torch.arange(1, rows * blocks + 1, dtype=torch.int32, device=device).view(rows, blocks)
    q = torch.randn(rows * count, kv_heads * group, width_k, device=device, dtype=dtype)
    meta = torch.randn(kv_heads, metas, width_k + width_v, device=device, dtype=dtype)
    lengths = torch.full((rows,), context, dtype=torch.int32, device=device)
    starts = torch.arange(rows + 1, dtype=torch.int32, device=device) * count
    out = torch.empty(rows * count, kv_heads * group, width_v, device=device, dtype=dtype)

    def run() -> torch.Tensor:
        return pinned_window_attention(
            q, pages[..., :width_k], pages[..., width_k:], table, lengths, starts,
            meta_k_HMD=meta[..., :width_k], meta_v_HMD=meta[..., width_k:], window=window,
            scale=width_k**-0.5, out_THD=out, max_query_len=count,
        ).clone()  # fmt: skip

    name = f"attention, {rows} rows x {count} of {context}, window {window}, {str(dtype).removeprefix('torch.')}"
    return name, run, attention_tolerance.FORWARD[dtype]


def cases() -> Iterator[Case]:
    """Everything that is timed."""
    yield from scan_cases(240, 272, 256)
    yield from scan_cases(4, 2048, 3200)
    yield from serving_scan_cases(256, 200, 256)
    yield from serving_scan_cases(64, 200, 3200)
    for dtype in (torch.float32, torch.bfloat16):
        for rows, count, context in ((1, 1, 1000), (64, 1, 1000), (256, 1, 1000), (1, 4096, 4096)):
            yield attention_case(rows, count, context, 1024, dtype)


def main() -> None:
    """Print a table; fail on the first kernel that disagrees with its reference."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("This benchmark needs a CUDA device; on a CPU there is nothing to time.")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n\n| case | ms |\n|---|---|")
    for name, run, tolerance in cases():
        actual = run().clone()
        with use_implementation("reference"):
            assert_near(actual, run(), tolerance, name)
        print(f"| {name} | {milliseconds(run):.3f} |", flush=True)


if __name__ == "__main__":
    main()

"""Paged attention with pinned keys: the reference against dense attention, Triton against the reference."""

import pytest
import torch

import nlrl_kernels
from nlrl_kernels.testing import assert_near, poisoned
from nlrl_kernels.window_attention.tolerance import FORWARD

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


class Case:
    """A mixed batch (chunk of a prompt, decode, whole prompt, unused row); what no query may read is NaN."""

    def __init__(self, page=16, window=None, metas=5, heads=4, kv_heads=2, width_k=16, width_v=32, dtype=torch.float32):
        self.counts, self.lengths = [7, 1, 20, 0], [40, 33, 20, 0]
        self.page, self.window, self.group = page, window, heads // kv_heads
        generator = torch.Generator().manual_seed(7)

        def normal(*shape):
            return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE)

        self.q = normal(sum(self.counts), heads, width_k)
        self.meta_k, self.meta_v = normal(kv_heads, metas, width_k), normal(kv_heads, metas, width_v)
        self.keys = [normal(length, kv_heads, width_k) for length in self.lengths]
        self.values = [normal(length, kv_heads, width_v) for length in self.lengths]
        # One buffer [pages, heads, page, k + v], as vLLM allocates it; block 0 is the null block.
        pages = sum(-(-length // page) for length in self.lengths) + 1
        buffer = poisoned(pages, kv_heads, page, width_k + width_v, device=DEVICE).to(dtype).transpose(1, 2)
        self.k_pages, self.v_pages = buffer[..., :width_k], buffer[..., width_k:]
        self.table = torch.zeros(4, max(-(-length // page) for length in self.lengths), dtype=torch.int32)
        free = torch.randperm(pages - 1, generator=generator).add(1).tolist()
        for row, length in enumerate(self.lengths):
            oldest = 0 if window is None else max(0, length - self.counts[row] - window)
            for j in range(oldest // page, -(-length // page)):
                block = self.table[row, j] = free.pop()
                inside = slice(max(oldest, j * page), min(length, (j + 1) * page))
                offset = slice(inside.start - j * page, inside.stop - j * page)
                self.k_pages[block, offset] = self.keys[row][inside]
                self.v_pages[block, offset] = self.values[row][inside]
        self.table = self.table.to(DEVICE)

    def run(self, implementation):
        out = poisoned(len(self.q), self.q.shape[1], self.meta_v.shape[-1], device=DEVICE).to(self.q.dtype)
        with nlrl_kernels.use_implementation(implementation):
            return nlrl_kernels.pinned_window_attention(
                self.q,
                self.k_pages,
                self.v_pages,
                self.table,
                torch.tensor(self.lengths, dtype=torch.int32, device=DEVICE),
                torch.tensor([0, *self.counts], device=DEVICE).cumsum(0, dtype=torch.int32),
                meta_k_HMD=self.meta_k,
                meta_v_HMD=self.meta_v,
                window=self.window,
                scale=self.q.shape[-1] ** -0.5,
                out_THD=out,
                max_query_len=max(self.counts),
            )

    def dense(self):
        """Plain attention over [meta ; all keys of the row] with the mask written out."""
        rows, begin = [], 0
        for count, length, keys, values in zip(self.counts, self.lengths, self.keys, self.values, strict=True):
            k = torch.cat([self.meta_k, keys.transpose(0, 1)], dim=1).repeat_interleave(self.group, 0).float()
            v = torch.cat([self.meta_v, values.transpose(0, 1)], dim=1).repeat_interleave(self.group, 0).float()
            q = self.q[begin : begin + count].transpose(0, 1).float()
            begin += count
            position = torch.arange(length - count, length)[:, None]
            key = torch.arange(length)
            seen = (key <= position) & (position - key <= (length if self.window is None else self.window))
            mask = torch.cat([torch.ones(count, self.meta_k.shape[1], dtype=torch.bool), seen], dim=1).to(DEVICE)
            o = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0]
            rows.append(o.transpose(0, 1))
        return torch.cat(rows)


SETTINGS = [
    {},
    {"window": 8},
    {"window": 1, "metas": 1},
    {"window": 3, "metas": 0},
    {"metas": 0, "page": 5},
    {"window": 16, "page": 48, "metas": 33},
    {"heads": 6, "kv_heads": 1, "width_k": 12, "width_v": 20, "window": 9},
    {"heads": 5, "kv_heads": 5, "width_k": 32, "width_v": 64, "page": 7, "window": 30},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_reference_equals_dense_attention(settings):
    case = Case(**settings)
    assert_near(case.run("reference"), case.dense(), FORWARD[torch.float32])


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_triton_equals_the_reference(settings):
    case = Case(**settings)
    assert_near(case.run("triton"), case.run("reference"), FORWARD[torch.float32])


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("settings", [*SETTINGS, {"page": 128, "width_k": 64, "width_v": 128, "metas": 128}], ids=str)
def test_sixteen_bit_inputs(settings, dtype):
    case = Case(**settings, dtype=dtype)
    assert_near(case.run("triton"), case.run("reference"), FORWARD[dtype])

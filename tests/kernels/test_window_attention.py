"""Paged attention with pinned keys: the reference against dense attention in float64, Triton against both."""

import pytest
import torch

import nlrl_kernels
from nlrl_kernels.testing import assert_near, poisoned
from nlrl_kernels.window_attention.tolerance import FORWARD

pytest.importorskip("triton")

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


LAYOUT = {"heads": 4, "kv_heads": 2, "width_k": 16, "width_v": 32}


class Case:
    """A mixed batch (chunk of a prompt, decode, whole prompt, unused row); what no query may read is NaN."""

    def __init__(
        self, counts=(7, 1, 20, 0), lengths=(40, 33, 20, 0), *, page=16, window=None, metas=5, dtype=torch.float32,
        spare=0, **layout,
    ):  # fmt: skip
        heads, kv_heads, width_k, width_v = ({**LAYOUT, **layout}[name] for name in LAYOUT)
        self.counts, self.lengths = list(counts), list(lengths)
        self.page, self.window, self.group = page, window, heads // kv_heads

        def normal(*shape):
            return torch.randn(*shape).to(dtype).to(DEVICE)

        self.q = normal(sum(self.counts), heads, width_k)
        self.meta_k, self.meta_v = normal(kv_heads, metas, width_k), normal(kv_heads, metas, width_v)
        self.keys = [normal(length, kv_heads, width_k) for length in self.lengths]
        self.values = [normal(length, kv_heads, width_v) for length in self.lengths]
        # One buffer [pages, heads, page, k + v], as vLLM allocates it; block 0 is the null block.
        pages = sum(-(-length // page) for length in self.lengths) + 1
        buffer = poisoned(pages, kv_heads, page, width_k + width_v, device=DEVICE).to(dtype).transpose(1, 2)
        self.k_pages, self.v_pages = buffer[..., :width_k], buffer[..., width_k:]
        columns = max(-(-length // page) for length in self.lengths) + spare
        self.table = torch.zeros(len(self.counts), columns, dtype=torch.int32)
        free = torch.randperm(pages - 1).add(1).tolist()
        for row, length in enumerate(self.lengths):
            oldest = 0 if window is None else max(0, length - self.counts[row] - window)
            for j in range(oldest // page, -(-length // page)):
                block = self.table[row, j] = free.pop()
                inside = slice(max(oldest, j * page), min(length, (j + 1) * page))
                offset = slice(inside.start - j * page, inside.stop - j * page)
                self.k_pages[block, offset] = self.keys[row][inside]
                self.v_pages[block, offset] = self.values[row][inside]
        self.table = self.table.to(DEVICE)

    def run(self, implementation, scale=None):
        out = poisoned(len(self.q), self.q.shape[1], self.meta_v.shape[-1], device=DEVICE).to(self.q.dtype)
        with nlrl_kernels.use_implementation(implementation):
            return nlrl_kernels.pinned_window_attention(
                self.q, self.k_pages, self.v_pages, self.table,
                torch.tensor(self.lengths, dtype=torch.int32, device=DEVICE),
                torch.tensor([0, *self.counts], device=DEVICE).cumsum(0, dtype=torch.int32),
                meta_k_HMD=self.meta_k, meta_v_HMD=self.meta_v, window=self.window,
                scale=scale or self.q.shape[-1] ** -0.5, out_THD=out, max_query_len=max(self.counts),
            )  # fmt: skip

    def dense(self):
        """Plain attention over [meta ; all keys of the row] with the mask written out, in float64."""
        rows, begin = [], 0
        for count, length, keys, values in zip(self.counts, self.lengths, self.keys, self.values, strict=True):
            k = torch.cat([self.meta_k, keys.transpose(0, 1)], dim=1).repeat_interleave(self.group, 0).double()
            v = torch.cat([self.meta_v, values.transpose(0, 1)], dim=1).repeat_interleave(self.group, 0).double()
            q = self.q[begin : begin + count].transpose(0, 1).double()
            begin += count
            position = torch.arange(length - count, length)[:, None]
            key = torch.arange(length)
            seen = (key <= position) & (position - key <= (length if self.window is None else self.window))
            mask = torch.cat([torch.ones(count, self.meta_k.shape[1], dtype=torch.bool), seen], dim=1).to(DEVICE)
            o = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0]
            rows.append(o.transpose(0, 1))
        return torch.cat(rows)


SETTINGS = [
    {"page": 32},
    {"window": 8},
    {"window": 1, "metas": 1, "page": 64},
    {"window": 3, "metas": 0},
    {"metas": 0, "page": 5},
    {"window": 0, "page": 48, "metas": 70},
    {"heads": 6, "kv_heads": 1, "width_k": 12, "width_v": 20, "window": 9},
    {"heads": 5, "kv_heads": 5, "width_k": 32, "width_v": 64, "page": 32, "window": 30, "metas": 32},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_both_implementations_equal_dense_attention(settings):
    case = Case(**settings)
    assert_near(case.run("reference"), case.dense(), FORWARD[torch.float32])
    assert_near(case.run("triton"), case.dense(), FORWARD[torch.float32])


@pytest.fixture
def splits(monkeypatch):
    """How many programs shared a row's keys, of each launch of a decode that shares them."""
    from nlrl_kernels.window_attention import kernels

    seen, kernel = [], kernels.combine

    class Counting:
        def __getitem__(self, grid):
            def launch(*arguments, **settings):
                seen.append(arguments[5])
                return kernel[grid](*arguments, **settings)

            return launch

    monkeypatch.setattr(kernels, "combine", Counting())
    return seen


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 7),  # tiles of 32 keys: 6 of the table's 192, 1 pinned
        ({"page": 32, "window": 40}, 4),  # 41 to 43 keys of the window touch 3 tiles at most, 1 pinned
        ({"window": 2, "metas": 0, "page": 5}, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("counts", [[1, 1, 0, 1, 1], [1, 2, 0, 3, 1]], ids=str)
def test_decode_shares_keys_out(settings, expected, counts, splits):
    case = Case(counts, [150, 65, 0, 3, 64], spare=2, **settings)
    assert_near(case.run("triton"), case.dense(), FORWARD[torch.float32])
    assert splits == [expected]


def test_results_are_the_same_from_run_to_run():
    for case in (Case([1, 1], [150, 20], spare=2), Case(window=8)):
        assert case.run("triton").equal(case.run("triton"))


def test_the_work_of_a_decode_does_not_depend_on_the_context_past_the_window():
    from nlrl_kernels.window_attention.triton_impl import Tile, decode_splits

    tile = Tile(16, 64, 4, 3)
    for heads in (5, 160, 1280):
        assert len({decode_splits(heads, 128, longest, 1024, 1, tile) for longest in (2048, 8192, 65536)}) == 1
    assert [decode_splits(heads, 128, 65536, 1024, 1, tile) for heads in (5, 160, 320, 640)] == [20, 3, 1, 1]
    assert decode_splits(5, 128, 65536, None, 1, tile) == 64
    assert decode_splits(1280, 128, 65536, None, 1, tile) == 1


def test_one_token_without_anything_before_it():
    case = Case([1], [1], metas=0)
    assert_near(case.run("triton"), case.values[0].repeat_interleave(2, dim=1), FORWARD[torch.float32])


def test_many_rows_find_their_tiles():
    counts = [0] * 150
    counts[3], counts[127], counts[128], counts[149] = 40, 1, 9, 2
    case = Case(counts, [2 * count for count in counts], window=5, kv_heads=1, heads=2)
    assert_near(case.run("triton"), case.dense(), FORWARD[torch.float32])


def test_a_scale_that_is_not_positive_is_refused():
    case = Case([1], [1])
    with pytest.raises(ValueError, match="must be positive"):
        case.run("triton", scale=-0.25)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("settings", [*SETTINGS, {"page": 128, "width_k": 64, "width_v": 128, "metas": 128}], ids=str)
def test_sixteen_bit_inputs(settings, dtype):
    case = Case(**settings, dtype=dtype)
    assert_near(case.run("triton"), case.dense(), FORWARD[dtype])
    long = Case([300, 1, 1, 0, 77], [2000, 1300, 1, 0, 77], **settings | {"window": 500}, dtype=dtype)
    assert_near(long.run("triton"), long.dense(), FORWARD[dtype])
    decode = Case([1, 1, 1], [2000, 1, 700], **settings, dtype=dtype)
    assert_near(decode.run("triton"), decode.dense(), FORWARD[dtype])

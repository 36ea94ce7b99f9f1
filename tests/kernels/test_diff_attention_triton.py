"""Differential attention in Triton against its definition: packed rows with gradients, and a paged cache."""

import copy

import pytest
import torch

import nlrl_kernels
from nlrl_kernels.diff_attention.reference import diff_attention
from nlrl_kernels.diff_attention.tolerance import BACKWARD, FORWARD
from nlrl_kernels.testing import assert_as_accurate, assert_near, poisoned

pytest.importorskip("triton")

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
V1 = {"heads": 2, "kv_heads": 1, "width": 16, "width_v": 32, "eps": 1e-5, "weight": True, "factor": 0.8}
V2 = {"heads": 4, "kv_heads": 2, "width": 16, "width_v": 16, "shared": True, "lam": "token"}
DIFFLLAMA = {"heads": 2, "kv_heads": 2, "width": 24, "width_v": 48, "eps": 1e-6, "factor": 0.5}
WIDE = V1 | {"width": 96, "width_v": 192, "kv_heads": 2}  # its maps take turns
LAYOUTS = {"V1": V1, "V2": V2, "DiffLlama": DIFFLLAMA, "wide": WIDE}
QUERIES, KEYS = [3, 0, 1, 35, 1], [3, 0, 38, 35, 1]  # a row of nothing, one token over many, odd ones
SIXTEEN = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def fresh_seed(record_property):
    """Other inputs in every run; the seed stands in the report."""
    seed = torch.seed() % 2**31
    record_property("seed", seed)
    torch.manual_seed(seed)
    print(f"seed {seed}")


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """What a kernel leaves unwritten is NaN."""
    empty = torch.empty

    def poisoned_empty(*shape, **settings):
        made = empty(*shape, **settings)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned_empty)


def starts(counts):
    return torch.tensor([0, *counts], device=DEVICE).cumsum(0, dtype=torch.int32)


class Case:
    """Fresh inputs of one layout: queries of every row, keys and values, lambda, and the settings of the norm."""

    def __init__(self, layout, queries=QUERIES, keys=KEYS, dtype=torch.float32, gradients=False):
        self.queries, self.keys, self.dtype = queries, keys, dtype
        heads, kv_heads, width, width_v = (layout[key] for key in ("heads", "kv_heads", "width", "width_v"))
        T, S = sum(queries), sum(keys)

        def normal(*shape, kind=dtype):
            return torch.randn(shape).to(kind).to(DEVICE).requires_grad_(gradients)

        self.q1, self.q2 = normal(T, heads, width), normal(T, heads, width)
        self.k1 = normal(S, kv_heads, width)
        self.k2 = self.k1 if layout.get("shared") else normal(S, kv_heads, width)
        self.v = normal(S, kv_heads, width_v)
        self.lam = normal(T, heads) if layout.get("lam") else normal(kind=torch.float32)
        self.weight = normal(width_v, kind=torch.float32) if layout.get("weight") else None
        self.settings = {"scale": width**-0.5, "eps": layout.get("eps"), "factor": layout.get("factor", 1.0)}

    def exact(self):
        """The same inputs in float64."""
        wide = copy.copy(self)
        for name in ("q1", "q2", "k1", "k2", "v", "lam", "weight"):
            if (x := getattr(self, name)) is not None:
                setattr(wide, name, x.detach().double().requires_grad_(x.requires_grad))
        wide.k2 = wide.k1 if self.k2 is self.k1 else wide.k2
        return wide

    def leaves(self):
        found = {id(x): x for x in (self.q1, self.q2, self.k1, self.k2, self.v, self.lam, self.weight) if x is not None}
        return list(found.values())

    def packed(self, implementation):
        with nlrl_kernels.use_implementation(implementation):
            return nlrl_kernels.diff_attention_varlen(
                self.q1, self.q2, self.k1, self.k2, self.v, self.lam,
                starts_R1=starts(self.queries), key_starts_R1=starts(self.keys),
                max_query_len=max(self.queries), max_key_len=max(self.keys), weight_W=self.weight, **self.settings,
            )  # fmt: skip

    def paged(self, implementation, page=16, spare=2):
        """From a cache as vLLM allocates it: page 0 the null page, keys and values in one buffer, the rest NaN."""
        width, kv_heads, width_v = self.q1.shape[-1], self.v.shape[1], self.v.shape[2]
        tables = [-(-length // page) for length in self.keys]
        buffer = poisoned(sum(tables) + 1, kv_heads, page, 2 * width + width_v, device=DEVICE).to(self.dtype)
        buffer = buffer.transpose(1, 2)
        k1_pages, k2_pages = buffer[..., :width], buffer[..., width : 2 * width]
        table = torch.zeros(len(tables), max(tables) + spare, dtype=torch.int32)
        free, first = (torch.randperm(sum(tables)) + 1).tolist(), 0
        for row, length in enumerate(self.keys):
            for j in range(0, length, page):
                block = table[row, j // page] = free.pop()
                part = slice(first + j, first + min(j + page, length))
                count = part.stop - part.start
                k1_pages[block, :count], k2_pages[block, :count] = self.k1[part], self.k2[part]
                buffer[block, :count, :, 2 * width :] = self.v[part]
            first += length
        k2_pages = k1_pages if self.k2 is self.k1 else k2_pages
        out = poisoned(len(self.q1), self.q1.shape[1], width_v, device=DEVICE).to(self.dtype)
        with nlrl_kernels.use_implementation(implementation):
            return nlrl_kernels.diff_attention_paged(
                self.q1, self.q2, k1_pages, k2_pages, buffer[..., 2 * width :], table.to(DEVICE),
                torch.tensor(self.keys, dtype=torch.int32, device=DEVICE), starts(self.queries), self.lam,
                out_THW=out, max_query_len=max(self.queries), weight_W=self.weight, **self.settings,
            )  # fmt: skip


def check(case, found):
    assert_as_accurate(found, case.packed("reference"), case.exact().packed("reference"), FORWARD[case.dtype])


def check_gradients(case, dtype):
    weights = torch.randn(len(case.q1), case.q1.shape[1], case.v.shape[2]).to(DEVICE)
    gradients = []
    for this, implementation in ((case, "triton"), (case, "reference"), (case.exact(), "reference")):
        result = this.packed(implementation)
        gradients.append(torch.autograd.grad((result * weights).sum(), this.leaves()))
    for i, (one, other, exact) in enumerate(zip(*gradients, strict=True)):
        assert one.dtype == other.dtype
        assert_as_accurate(one, other, exact, BACKWARD[dtype], f"gradient {i}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_rows_and_their_gradients(layout):
    case = Case(LAYOUTS[layout], gradients=True)
    check(case, case.packed("triton"))
    check_gradients(case, torch.float32)


def test_the_reference_of_packed_rows_is_the_dense_one_row_by_row():
    case = Case(V1, [4, 4], [6, 6])
    q1, q2, k1, k2, v = (x.unflatten(0, (2, -1)) for x in (case.q1, case.q2, case.k1, case.k2, case.v))
    dense = diff_attention(q1, q2, k1, k2, v, case.lam, weight_W=case.weight, **case.settings)
    assert_near(case.packed("reference"), dense.flatten(0, 1), FORWARD[torch.float32])


def test_without_gradients_the_result_is_bitwise_the_same():
    case = Case(WIDE, gradients=True)
    with torch.no_grad():
        alone = case.packed("triton")
    assert alone.equal(case.packed("triton"))


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("way", ["together", "in_turn", "sums_first"])
def test_every_way_around_the_two_sums(way, paged, monkeypatch):
    from nlrl_kernels.diff_attention import triton_impl

    monkeypatch.setattr(triton_impl, "prefill_tile", lambda *_: triton_impl.Tile(32, 16, 4, 1, way))
    case = Case(V1, [3, 0, 35], [3, 0, 38])
    found = case.paged("triton", 16 if way == "in_turn" else 5) if paged else case.packed("triton")
    assert_near(found, case.packed("reference"), FORWARD[torch.float32])


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_that_is_not_positive_is_refused(scale):
    case = Case(V1, [3], [3])
    case.settings["scale"] = scale
    for run in (case.packed, case.paged):
        with pytest.raises(ValueError, match="must be positive"):
            run("triton")


@pytest.mark.parametrize("page", [5, 16, 64])
@pytest.mark.parametrize("layout", ["V1", "V2", "wide"])
def test_a_paged_cache_in_chunks(layout, page):
    case = Case(LAYOUTS[layout])
    check(case, case.paged("triton", page))
    check(case, case.paged("reference", page))


@pytest.mark.parametrize("counts", [[1, 1, 0, 1, 1], [1, 2, 0, 3, 1]], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_decode_splits_the_keys(layout, counts, monkeypatch):
    from nlrl_kernels.diff_attention import kernels, triton_impl

    monkeypatch.setattr(triton_impl, "_KEYS_A_SPLIT", 32)
    splits = []
    kernel = kernels.combine

    class Counting:
        def __getitem__(self, grid):
            def launch(*arguments, **settings):
                splits.append(settings["SPLITS"])
                return kernel[grid](*arguments, **settings)

            return launch

    monkeypatch.setattr(kernels, "combine", Counting())
    case = Case(LAYOUTS[layout], counts, [150, 65, 0, 3, 64])
    check(case, case.paged("triton"))
    assert splits == [6]  # 150 keys in pages of 16, and two spare pages: 192


def test_one_token_of_one_row():
    case = Case(V1, [1], [1], gradients=True)
    found, expected = case.packed("triton"), case.packed("reference")
    assert_near(found, expected, FORWARD[torch.float32])
    assert case.weight is not None
    # One key has all the weight, and the norm takes lambda out: no other gradients are there to compare.
    for one, other in zip(
        *(torch.autograd.grad(y.sum(), [case.v, case.weight]) for y in (found, expected)), strict=True
    ):
        assert_near(one, other, BACKWARD[torch.float32])


def test_nothing_at_all():
    case = Case(V1, [0, 0], [0, 0], gradients=True)
    found = case.packed("triton")
    assert found.shape == (0, 2, 32)
    assert float(torch.autograd.grad(found.sum(), case.lam)[0]) == 0.0


def test_double_precision_is_left_to_the_reference():
    case = Case(V2, [5], [7], dtype=torch.float64)
    assert case.packed("triton").equal(case.packed("reference"))


@pytest.mark.parametrize("layout", ["V1", "V2"])
def test_the_operation_keeps_what_torch_compile_asks_of_it(layout):
    from nlrl_kernels.diff_attention import triton_impl

    case = Case(LAYOUTS[layout], [3], [5], gradients=True)
    keys = (case.k1, case.k1.detach().clone() if case.k2 is case.k1 else case.k2)
    arguments = (case.q1, case.q2, *keys, case.v, case.lam, case.weight, starts([3]), starts([5]), 3, 5)
    settings = (case.settings["scale"], case.settings["eps"], case.settings["factor"], True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(triton_impl._varlen, (*arguments, *settings), test_utils=checks)


def test_a_cache_whose_last_axis_is_not_adjacent_is_refused():
    case = Case(V2, [1], [3])
    pages = case.k1[None].transpose(-1, -2).contiguous().transpose(-1, -2)
    with nlrl_kernels.use_implementation("triton"), pytest.raises(ValueError, match="adjacent"):
        nlrl_kernels.diff_attention_paged(
            case.q1, case.q2, pages, pages, case.v[None], torch.zeros(1, 1, dtype=torch.int32),
            torch.tensor([3]), starts([1]), case.lam, out_THW=torch.zeros(1, 4, 16), max_query_len=1, **case.settings,
        )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("layout", [*LAYOUTS, "3B"])
def test_sixteen_bit_inputs(layout, dtype):
    layout = (LAYOUTS | {"3B": V1 | {"heads": 3, "kv_heads": 3, "width": 128, "width_v": 256}})[layout]
    case = Case(layout, [300, 0, 1, 77], [300, 0, 513, 400], dtype, gradients=True)
    assert_near(case.packed("triton"), case.packed("reference"), FORWARD[dtype])
    check_gradients(case, dtype)
    with torch.no_grad():
        for page in (16, 24, 128):
            assert_near(case.paged("triton", page), case.packed("reference"), FORWARD[dtype])
        decode = Case(layout, [1, 1, 1], [300, 1, 4097], dtype)
        assert_near(decode.paged("triton"), decode.packed("reference"), FORWARD[dtype])

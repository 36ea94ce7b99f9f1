"""The scan in Triton against float64: forward, every gradient, packed rows, chunks, one-token steps."""

from typing import Any

import pytest
import torch

import nlrl_kernels
from nlrl_kernels.mamba_scan.tolerance import BACKWARD, FORWARD
from nlrl_kernels.testing import assert_near, poisoned
from tests.support.interpreted_scan import hasten, poison

triton_impl = pytest.importorskip("nlrl_kernels.mamba_scan.triton_impl")

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
WIDE, ALLOWED = torch.float64, FORWARD[torch.float32]


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch):
    poison(monkeypatch)
    if not GPU:
        hasten(monkeypatch)
    # Chunks and tiles so small that few tokens meet all their borders; other sizes of tiles compile on a GPU alone.
    monkeypatch.setattr(triton_impl, "_TRAINING_CHUNK", 8)
    monkeypatch.setattr(triton_impl, "scan_tile", lambda: triton_impl.Tile(4, 32, 4, 1))


def case(batch, time, channels, states, full=True, dtype=torch.float32, seed=0) -> dict[str, Any]:
    """Inputs by name; without ``full`` none that may be left out."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    tensors: dict[str, Any] = {
        "u_BTC": normal(batch, time, channels).to(dtype),
        "delta_BTC": normal(batch, time, channels).to(dtype),
        "A_CN": -torch.exp(normal(channels, states)),
        "B_BTN": normal(batch, time, states).to(dtype),
        "C_BTN": normal(batch, time, states).to(dtype),
        "D_C": normal(channels),
        "z_BTC": normal(batch, time, channels).to(dtype),
        "start_BCN": normal(batch, channels, states),
        "bias_C": normal(channels),
    }
    if not full:
        tensors |= dict.fromkeys(("D_C", "z_BTC", "start_BCN", "bias_C"))
        tensors["delta_BTC"] = torch.nn.functional.softplus(tensors["delta_BTC"].float()).to(dtype)
    return {name: None if x is None else x.to(DEVICE) for name, x in tensors.items()}


def run(implementation, tensors, gradients=True):
    """Outputs, and the gradients of a fixed sum of them; the reference computes in float64."""
    kind = {"dtype": WIDE} if implementation == "reference" else {}
    leaves: dict[str, Any] = {
        n: None if x is None else x.detach().to(**kind).requires_grad_(gradients) for n, x in tensors.items()
    }
    with nlrl_kernels.use_implementation(implementation):
        y, final = nlrl_kernels.selective_scan(**leaves, softplus=tensors["bias_C"] is not None)
    results = {"y": y.detach(), "final": final.detach()}
    if gradients:
        generator = torch.Generator().manual_seed(9)
        weights = [torch.randn(x.shape, generator=generator).to(x) for x in (y, final)]
        ((y * weights[0]).sum() + (final * weights[1]).sum()).backward()
        results |= {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf is not None}
    return results


def compare(actual, expected, dtype=torch.float32):
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        allowed = BACKWARD[dtype] if name.startswith("d") else FORWARD[torch.float32 if name == "final" else dtype]
        assert_near(actual[name], value, allowed, name)


# Time at, before and after borders of tiles (4) and chunks (8); channels past one block of 32; odd states, two groups.
SHAPES = [(1, 1, 3, 1), (2, 8, 5, 8), (1, 11, 33, 3)] + ([(8, 272, 256, 16), (1, 1000, 64, 16)] if GPU else [])


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_gradients_equal_the_reference(shape):
    tensors = case(*shape)
    compare(run("triton", tensors), run("reference", tensors))


def test_what_may_be_left_out_may_be_left_out():
    tensors = case(1, 10, 3, 2, full=False)
    compare(run("triton", tensors), run("reference", tensors))


def test_rows_that_are_slices_of_something_wider_are_read_where_they_are():
    tensors = case(2, 5, 4, 2)
    expected = run("reference", tensors)
    for name in ("u_BTC", "delta_BTC", "B_BTN", "z_BTC"):
        around = poisoned(2, 5, tensors[name].shape[2] + 3, device=DEVICE)
        around[..., 1:-2] = tensors[name]
        tensors[name] = around[..., 1:-2]
    compare(run("triton", tensors), expected)


def test_no_tokens_leave_the_state():
    tensors = case(2, 0, 3, 2)
    found, expected = run("triton", tensors), run("reference", tensors)
    assert found["y"].shape == (2, 0, 3)
    assert_near(found["final"], tensors["start_BCN"], 0.0)
    assert_near(found["dstart_BCN"], expected["dstart_BCN"], ALLOWED)
    assert all(bool((x == 0).all()) for name, x in found.items() if name not in ("final", "dstart_BCN"))


def test_a_delta_of_minus_infinity_is_a_step_of_size_zero():
    tensors = case(1, 6, 3, 2)
    short = {n: x[:, :4] if x is not None and n.endswith(("BTC", "BTN")) else x for n, x in tensors.items()}
    tensors["delta_BTC"][:, 4:] = float("-inf")
    found, expected = run("triton", tensors), run("reference", short)
    assert_near(found["final"], expected["final"], ALLOWED)
    assert_near(found["ddelta_BTC"][:, :4].isfinite().double(), torch.ones(1, 4, 3, device=DEVICE), 0.0)
    assert bool((found["ddelta_BTC"][:, 4:] == 0).all())


@pytest.mark.parametrize("chunk", [None, 4])
def test_without_gradients_the_result_is_the_same_in_chunks_and_whole(chunk, monkeypatch):
    monkeypatch.setattr(triton_impl, "chunk_length", lambda *_: chunk)
    tensors = case(2, 9, 5, 4)
    compare(run("triton", tensors, False), run("reference", tensors, False))


def test_results_are_the_same_from_run_to_run():
    tensors = case(1, 9, 3, 2)
    first, second = run("triton", tensors), run("triton", tensors)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_inputs(dtype, monkeypatch):
    monkeypatch.undo()  # tiles and chunks of today
    tensors = case(2, 150, 70, 16, dtype=dtype)
    compare(run("triton", tensors), run("reference", tensors), dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("batch", [1, 40])
def test_64k_tokens(batch, monkeypatch):
    monkeypatch.undo()
    tensors = case(1, 65536, 64, 16)
    tensors = {n: x.expand(batch, *x.shape[1:]) if "_B" in n else x for n, x in tensors.items()}
    whole = run("triton", tensors, False)
    first = {n: x[:1] if "_B" in n else x for n, x in tensors.items()}
    for name, expected in run("reference", first, False).items():
        assert_near(whole[name][:1], expected, ALLOWED, name)
        assert torch.equal(whole[name], whole[name][:1].expand_as(whole[name]))


def test_reference_gradients_are_those_of_finite_differences():
    tensors = {n: x.double().cpu().requires_grad_() for n, x in case(1, 4, 2, 3).items()}

    def scan(*given):
        return nlrl_kernels.selective_scan(**dict(zip(tensors, given, strict=True)), softplus=True)

    with nlrl_kernels.use_implementation("reference"):
        assert torch.autograd.gradcheck(scan, list(tensors.values()))


def integers(*values):
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def packed(lengths, channels=5, states=4):
    """Inputs of rows one after the other, and keyword arguments by implementation."""
    tensors = case(1, sum(lengths), channels, states)
    tokens = [tensors[n][0] for n in ("u_BTC", "delta_BTC")] + [
        tensors["A_CN"],
        tensors["B_BTN"][0],
        tensors["C_BTN"][0],
    ]
    starts = integers(0, *torch.tensor(lengths).cumsum(0).tolist())
    return tensors, [*tokens, tensors["D_C"]], starts


@pytest.mark.parametrize(("implementation", "chunk"), [("reference", None), ("triton", None), ("triton", 4)])
def test_packed_rows_equal_whole_sequences(implementation, chunk, monkeypatch):
    monkeypatch.setattr(triton_impl, "chunk_length", lambda *_: chunk)
    lengths = [0, 3, 1, 0, 9, 4, 2, 0]  # row 5 has a negative slot
    slots, has_state = integers(3, 4, 0, 5, 2, -1, 6, 7), torch.tensor([1, 0, 1, 0, 0, 1, 1, 0], device=DEVICE).bool()
    tensors, tokens, starts = packed(lengths)
    start, known = tensors["start_BCN"][0], torch.randn(5, 4, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    # Slots lie in a wider buffer, as in vLLM's pages; everything not given to a row is NaN and must stay so.
    states = poisoned(9, 2, 5, 4, device=DEVICE)[:, 1]
    states[0], states[6] = known, 2 * known
    out = poisoned(*tokens[0].shape, device=DEVICE)
    with nlrl_kernels.use_implementation(implementation):
        nlrl_kernels.selective_scan_varlen(
            *tokens, starts_R1=starts, states_SCN=states, slots_R=slots, has_state_R=has_state, start_CN=start,
            z_TC=tensors["z_BTC"][0], out_TC=out, bias_C=tensors["bias_C"], softplus=True, longest=9,
        )  # fmt: skip
    for row, slot in enumerate(slots.tolist()):
        span = slice(int(starts[row]), int(starts[row + 1]))
        if slot < 0:
            assert torch.isnan(out[span]).all()
            continue
        if span.start == span.stop:
            assert torch.isnan(states[slot]).all()
            continue
        of_row: dict[str, Any] = {n: x[:, span] if n.endswith(("BTC", "BTN")) else x for n, x in tensors.items()}
        first: Any = {2: known, 6: 2 * known}.get(row, start)
        of_row["start_BCN"] = first[None]
        expected = run("reference", of_row, False)
        assert_near(out[span], expected["y"][0], ALLOWED, f"row {row}")
        assert_near(states[slot], expected["final"][0], ALLOWED, f"state of row {row}")
    assert torch.isnan(states[[1, 8]]).all()


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_steps_and_chunks_continue_a_sequence(implementation):
    tensors, tokens, bounds = packed([7])
    more = {"bias_C": tensors["bias_C"], "softplus": True}
    z, start, slot = tensors["z_BTC"][0], tensors["start_BCN"][0], integers(1)
    whole_states, states = poisoned(2, 5, 4, device=DEVICE), poisoned(2, 5, 4, device=DEVICE)

    def rows(begin, end, states, bounds):
        part = [x[begin:end] if len(x) == 7 else x for x in tokens]
        known = torch.tensor([begin > 0], device=DEVICE)
        return nlrl_kernels.selective_scan_varlen(
            *part, starts_R1=bounds, states_SCN=states, slots_R=slot, has_state_R=known, start_CN=start,
            z_TC=z[begin:end], **more,
        )  # fmt: skip

    with nlrl_kernels.use_implementation(implementation):
        whole = rows(0, 7, whole_states, bounds)
        parts = [rows(0, 3, states, integers(0, 3)), rows(3, 5, states, integers(0, 2))]
        for t in (5, 6):
            # Padding rows (slot -1), as CUDA graphs have them, change nothing; slots are a column, as in vLLM.
            step = [torch.stack([x[t], x[0], x[1]]) if len(x) == 7 else x for x in tokens]
            out = poisoned(3, 5, device=DEVICE)
            slots = torch.tensor([[1, 0], [-1, 0], [-1, 0]], device=DEVICE)[:, 0]
            nlrl_kernels.selective_state_update(
                *step, states_SCN=states, slots_R=slots, z_RC=torch.stack([z[t], z[0], z[1]]), out_RC=out, **more
            )
            parts.append(out[:1])
            assert torch.isnan(out[1:]).all()
    assert_near(torch.cat(parts), whole, ALLOWED)
    assert_near(states[1], whole_states[1], ALLOWED)
    assert torch.isnan(states[0]).all()


@pytest.mark.parametrize("setting", [(1, 4, 1), (4, 2, 1)])
def test_steps_of_any_tile_and_without_what_may_be_left_out(setting, monkeypatch):
    monkeypatch.setattr(triton_impl, "update_tile", lambda _: setting)
    given = [x for x in case(1, 5, 5, 3, full=False).values() if x is not None]
    u, delta, A, B, C, *_ = (x[0] if x.dim() == 3 else x for x in given)
    states = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    expected_states, slots = states.double(), integers(4, -1, 0, 5, 2)
    with nlrl_kernels.use_implementation("triton"):
        y = nlrl_kernels.selective_state_update(u, delta, A, B, C, None, states_SCN=states, slots_R=slots)
    u_, delta_, A_, B_, C_ = (x.double() for x in (u, delta, A, B, C))
    with nlrl_kernels.use_implementation("reference"):
        expected = nlrl_kernels.selective_state_update(
            u_, delta_, A_, B_, C_, None, states_SCN=expected_states, slots_R=slots
        )
    live = slots >= 0
    assert_near(y[live], expected[live], ALLOWED)
    assert_near(states, expected_states, ALLOWED)


def test_rows_are_cut_where_they_do_not_fill_the_gpu():
    tile = triton_impl.Tile(8, 32, 4, 1, 128)
    for batch, time in [(1, 2048), (1, 32768), (2, 2048)]:
        length = triton_impl.chunk_length(batch, batch * time, time, 3200, tile)
        assert length is not None
        assert length % 8 == 0
        programs = batch * time / length * 100
        assert 0.8 * 528 <= programs <= 1.1 * triton_impl._PROGRAMS
    for batch, time in [(16, 2048), (16, 32768), (1, 16), (256, 8)]:
        assert triton_impl.chunk_length(batch, batch * time, time, 3200, tile) is None


def test_an_unknown_implementation_is_refused():
    with (
        pytest.raises(ValueError, match="choose 'triton' or 'reference'"),
        nlrl_kernels.use_implementation("cuda"),  # type: ignore[arg-type]
    ):
        pass

"""The transformers view with the attention kernel that a GPU runs: the same logits and gradients as with a mask."""

import pytest
import torch

from nlrl_backbones.hymba import mixer
from nlrl_backbones.hymba.config import HymbaConfig
from nlrl_backbones.hymba.model import HymbaForCausalLM
from nlrl_kernels.testing import assert_near

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = HymbaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, global_attn_idx=[2], kv_reuse_group=[[0, 1]], num_memory_tokens=3, attn_window=6,
        mamba_dt_rank=4, mamba_d_state=4, initializer_range=0.3,
    )  # fmt: skip
    return HymbaForCausalLM(config).float()


@pytest.fixture
def kernel(monkeypatch):
    """Attention as on a GPU, the scan as it is; how often the kernel ran."""
    from nlrl_kernels.window_attention import triton_impl

    calls = []

    def noted(*arguments, **settings):
        calls.append(settings["window"])
        return triton_impl.pinned_window_attention_varlen(*arguments, **settings)

    def switch(on):
        monkeypatch.setattr(mixer, "implementation_for", lambda _: "triton" if on else "reference")

    monkeypatch.setattr(mixer, "pinned_window_attention_varlen", noted)
    return switch, calls


def test_logits_and_gradients_of_a_padded_batch(model, kernel):
    switch, calls = kernel
    ids = torch.randint(3, 64, (2, 20))
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, :7] = 0
    labels = torch.where(mask.bool(), ids, -100)
    labels[0, 7] = -100  # its logits stand at padding, where attention may give anything
    found = []
    for on in (True, False):
        switch(on)
        model.zero_grad()
        output = model(ids, attention_mask=mask, labels=labels)
        output.loss.backward()
        found.append([output.logits[mask.bool()].detach(), *(p.grad.clone() for p in model.parameters())])
    for name, one, other in zip(["logits", *(n for n, _ in model.named_parameters())], *found, strict=True):
        assert_near(one, other, 5e-5, name)
    assert calls == [6, 6, None]


def test_a_cache_is_continued_by_several_tokens_and_by_one(model, kernel):
    switch, calls = kernel
    ids = torch.randint(3, 64, (2, 24))
    switch(False)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        switch(True)
        cache, logits = None, []
        for part in ids.split([15, 8, 1], dim=1):
            output = model(part, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits.append(output.logits)
    assert_near(torch.cat(logits, dim=1), expected, 5e-5)
    assert len(calls) == 9


def test_what_follows_padding_in_the_cache_goes_by_a_mask(model, kernel):
    switch, calls = kernel
    ids, mask = torch.randint(3, 64, (2, 12)), torch.ones(2, 12, dtype=torch.long)
    mask[1, 8:10] = 0
    found = []
    for on in (True, False):
        switch(on)
        with torch.no_grad():
            output = model(ids[:, :10], attention_mask=mask[:, :10], use_cache=True)
            found.append(model(ids[:, 10:], attention_mask=mask, past_key_values=output.past_key_values).logits)
    whole, parts = found
    assert_near(whole, parts, 5e-5)
    assert len(calls) == 3  # of the first call alone


def test_torch_compile_follows_the_operator(monkeypatch):
    import nlrl_kernels
    from nlrl_kernels import ops

    monkeypatch.setattr(ops, "implementation_for", lambda _: "triton")
    q, k, v = (torch.randn(6, *width, requires_grad=True) for width in ((2, 16), (1, 16), (1, 32)))
    starts = torch.tensor([0, 6], dtype=torch.int32)

    def attend(q, k, v):
        return nlrl_kernels.pinned_window_attention_varlen(
            q, k, v, starts_R1=starts, key_starts_R1=starts, max_query_len=6, window=2, pinned=1, scale=0.25
        )

    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    assert_near(compiled(q, k, v).detach(), attend(q, k, v).detach(), 1e-6)
    gradients = [torch.autograd.grad(f(q, k, v).square().sum(), [q, k, v]) for f in (compiled, attend)]
    for one, other in zip(*gradients, strict=True):
        assert_near(one, other, 1e-6)

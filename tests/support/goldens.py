"""Greedy continuations by the official codes, whatever the layout of a golden folder, and folders that engines load."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[1] / "backbones"
FOLDERS = {
    "hymba": ROOT / "golden_hymba",
    "diff-v1": ROOT / "golden_diff" / "v1",
    "diff-v2": ROOT / "golden_diff" / "v2",
    "diffllama": ROOT / "golden_diffllama" / "plain",
    "ngpt": ROOT / "golden_ngpt",
    "bimamba": ROOT / "golden_bimamba",
    "bimamba-packed": ROOT / "golden_bimamba",
}
"""One checkpoint of each family, variant and form of weights."""


def greedy_cases(folder: Path) -> list[tuple[list[int], list[int]]]:
    """Prompts of a golden folder with their continuations, 24 tokens each."""
    from safetensors.torch import load_file

    described = json.loads((folder / "cases.json").read_text())
    tensors = load_file(folder / "cases.safetensors")
    if "greedy" in described:
        name = described["greedy"]["prompt"]
        return [(tensors[f"{name}.input_ids"].tolist(), described["greedy"]["new_tokens"])]
    ends = ("greedy_recompute_ids", "greedy_ids")
    found = [name for name in sorted(tensors) if name.startswith("prompt.") and name.endswith(ends)]
    return [(tensors[f"{name.rpartition('.')[0]}.input_ids"].tolist(), tensors[name].tolist()) for name in found]


def loadable(name: str, scratch: Path) -> Path:
    """The golden model ``name`` of ``FOLDERS`` as `nlrl convert` writes it, in a new folder of ``scratch``."""
    from served import model_only

    from nlrl_backbones.convert import convert

    family, _, form = name.partition("-")
    source = model_only(FOLDERS[name], scratch / f"{name}-official")
    return convert(family, source, scratch / name, packed=form == "packed").folder

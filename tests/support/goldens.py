"""Greedy continuations by the official codes, whatever the layout of a golden folder."""

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
}
"""One checkpoint of each family and variant."""


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

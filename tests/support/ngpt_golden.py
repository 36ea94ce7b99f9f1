"""nGPT's golden models, and its GPT baseline's, as folders: the official layout, and what libraries load."""

import shutil
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[1] / "backbones" / "golden_ngpt"
PREFIX = {"ngpt": "", "baseline": "baseline_"}
"""Kind of model -> what its files' names begin with."""
STEPS = 24
"""Length of the golden continuations."""


def write_folders(kind: str, folder: Path, **settings: Any) -> tuple[Path, Path]:
    """The official folder, and the same model for transformers and vLLM with settings of its configuration changed."""
    from safetensors.torch import save_file

    from nlrl_backbones.ngpt.weights import from_official, read_official

    official, ours = folder / "official", folder / "ours"
    official.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / f"{PREFIX[kind]}{name}", official / name)
    config, tensors = read_official(official)
    for name, value in settings.items():
        setattr(config, name, value)
    config.save_pretrained(ours)
    save_file(from_official(config, tensors), ours / "model.safetensors", metadata={"format": "pt"})
    return official, ours


def load_cases(kind: str) -> dict[str, Any]:
    """The golden tensors of one kind."""
    from safetensors.torch import load_file

    return load_file(GOLDEN / f"{PREFIX[kind]}cases.safetensors")

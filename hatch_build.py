"""Build hook: ship the recipes of runs/ inside the wheel.

An installed `nlrl run maze` finds its recipe in `nlrl/_recipes`; a checkout reads `runs/` itself, so an editable
install gets no copy that could grow stale.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RecipesHook(BuildHookInterface):
    """Map runs/*.toml and runs/reproduce/*.toml to nlrl/_recipes, in built wheels only."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the recipes to the files that hatchling packs; `version` is "standard" or "editable"."""
        if version == "editable":
            return
        runs = Path(self.root, "runs")
        for recipe in sorted((*runs.glob("*.toml"), *runs.glob("reproduce/*.toml"))):
            build_data["force_include"][str(recipe)] = f"nlrl/_recipes/{recipe.relative_to(runs).as_posix()}"

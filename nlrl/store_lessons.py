"""What each student was trained on, as chat JSON lines that trainers read, each example with the games it came from."""

from __future__ import annotations

import json
from pathlib import Path

from nlrl.errors import StoreError
from nlrl.store_export import writing
from nlrl.store_loops import dataset, datasets
from nlrl.store_reader import RunReader


def export_datasets(reader: RunReader, folder: Path) -> dict[str, int]:
    """Write `iteration-<n>-<student>.jsonl` into a new folder for each training; returns examples by file name.

    A line has `messages` (role and content, the reply to be learned last), the example's id and role, its weight, and
    `games`, the numbers of the games that it came from (`nlrl replay RUN --game N`).

    Raises:
        StoreError: the folder exists and holds something, or cannot be written.
    """
    counts: dict[str, int] = {}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise StoreError(f"'{folder}' is not empty; name a new folder.")
        for iteration, student, count in datasets(reader):
            name = f"iteration-{iteration}-{student}.jsonl"
            counts[name] = count
            with (folder / name).open("w", encoding="utf-8", newline="\n") as file:
                for example in dataset(reader, iteration, student):
                    spoken = [{"role": role, "content": content} for role, content in example.messages]
                    line = {
                        "messages": [*spoken, {"role": "assistant", "content": example.target}],
                        "id": example.id,
                        "role": example.role,
                        "weight": example.weight,
                        "games": list(example.sources),
                    }
                    file.write(json.dumps(line) + "\n")
    return counts

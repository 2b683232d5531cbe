"""The count of real episodes: the price of everything else.

Only a real environment writes it, one line an episode. Runs are deterministic, so an episode that an interruption
forced to be played again is the same episode: it is counted once, and the repetition is kept as a separate number.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path


class Ledger:
    """An append-only file of JSON lines: purpose, policy, start, seed of the action noise, success, steps."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def record(self, rows: Sequence[dict[str, object]]) -> None:
        """Appends the rows and waits until they are on disk. A line torn by a crash is closed first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and self.path.stat().st_size > 0 and self.path.read_bytes()[-1:] != b"\n"
        with open(self.path, "a") as file:
            file.write("\n" * torn + "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())

    def episodes(self) -> list[dict[str, object]]:
        """Every line that was written whole."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # torn by a crash; its episode was played again
        return rows

    def unique(self) -> list[dict[str, object]]:
        """Every episode once, also one that was played again after an interruption."""
        rows = {json.dumps(row, sort_keys=True): row for row in self.episodes()}
        return list(rows.values())

    def count(self) -> dict[str, int]:
        """Real episodes by purpose, each counted once, and how many were played again after an interruption."""
        unique = self.unique()
        purposes = Counter(str(row["purpose"]) for row in unique)
        repeated = len(self.episodes()) - len(unique)
        return {**dict(sorted(purposes.items())), **({"played_again": repeated} if repeated else {})}

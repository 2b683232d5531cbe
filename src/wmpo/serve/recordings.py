"""Episodes of a dataset or of a run, to be watched one by one."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

from wmpo.data.episode import Episode
from wmpo.data.importing import open_source
from wmpo.data.lerobot import num_episodes, open_lerobot
from wmpo.data.source import Keys
from wmpo.serve.messages import Refused
from wmpo.stages.job import existing_job
from wmpo.stages.rounds import collected_datasets


class Recordings:
    """Episodes of a dataset in any format that ``wmpo data import`` reads, or those that a run collected, of all rounds
    in the order of ``wmpo data export``. One is read at a time; in order is fastest.

    Raises ValueError when ``path`` is neither or holds no episodes.
    """

    def __init__(self, path: Path, keys: Keys) -> None:
        self.keys, self.is_run = keys, (path / "config.json").exists()
        self.roots = collected_datasets(existing_job(path)) if self.is_run else [path]
        if not self.roots:
            raise ValueError(f"{path} has no episodes yet; run: wmpo collect")
        self.fps = open_source(self.roots[0], keys).fps or 10
        self.counts = [self._count(root) for root in self.roots]
        if not sum(self.counts):
            raise ValueError(f"{path} holds no episodes; record some, or choose another folder")
        self._lock, self._at = threading.Lock(), -1
        self._rest: Iterator[Episode] = iter(())

    def __len__(self) -> int:
        return sum(self.counts)

    def _count(self, root: Path) -> int:
        if (root / "meta/info.json").exists():
            return num_episodes(root)
        return sum(1 for _ in open_source(root, self.keys).episodes)

    def episode(self, number: int) -> Episode:
        """Raises :class:`Refused` where there is none, and DatasetError where the dataset is damaged."""
        if not 0 <= number < len(self):
            raise Refused(f"there is no episode {number}; they are 0..{len(self) - 1}", 404)
        with self._lock:
            if number != self._at:
                self._rest = self._from(number)
            self._at = -1  # until it has been read: a damaged one must not shift those after it
            found = next(self._rest, None)
            if found is None:
                raise Refused(f"episode {number} is no longer there; start wmpo label again", 409)
            self._at = number + 1
        return found

    def _from(self, number: int) -> Iterator[Episode]:
        for root, count in zip(self.roots, self.counts, strict=True):
            if number < count:
                if (root / "meta/info.json").exists():
                    yield from open_lerobot(root, self.keys, first=number).episodes
                else:
                    yield from itertools.islice(open_source(root, self.keys).episodes, number, None)
            number = max(number - count, 0)

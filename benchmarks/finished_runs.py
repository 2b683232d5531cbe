"""What the benchmarks of finished runs share: measure each once, keep it, print one table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wmpo.checkpoint import read_json


def named(run: Path) -> str:
    """A run by its task and seed, wherever its folder lies."""
    about = read_json(run / "config.json")
    return f"{about['config']['env']['task']}-seed{about['seed']}"


def measure_and_show(
    doc: str | None,
    results: Path,
    measure: Callable[[Path], dict[str, Any]],
    show: Callable[[list[dict[str, Any]]], str],
) -> None:
    """A file for each task and seed; one that is there is not measured again."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--show", action="store_true", help="print the table of what is there")
    args = parser.parse_args()
    results.mkdir(parents=True, exist_ok=True)
    for run in [] if args.show else args.runs:
        path = results / f"{named(run)}.json"
        if not path.exists():
            path.write_text(json.dumps(measure(run)) + "\n")
    print(show([json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]))

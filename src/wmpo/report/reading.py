"""What the report knows of a run: its folder, read with patience for what is unfinished or torn."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPEATED = ("collect", "world-model", "reward", "clone", "improve")  # the stages of a round
STAGES = ("demos", "sft", "collect", "tokenizer", "world-model", "reward", "clone", "improve", "evaluate")
COMMAND = {"tokenizer": "world-model"}  # stages that are made by another one's command


@dataclass(frozen=True, kw_only=True)
class Run:
    """The files of a run; empty where a stage has not written yet.

    ``stages`` and ``metrics`` are those of the latest round that has them, except for ``improve``: its metrics are
    those of all rounds, with iterations counted over the run.
    """

    path: Path
    config: dict[str, Any]
    rounds: list[dict[str, dict[str, Any]]]
    stages: dict[str, dict[str, Any]]
    metrics: dict[str, list[dict[str, Any]]]
    episodes: list[dict[str, Any]]
    played_again: int
    results: dict[str, Any]
    fidelity: dict[str, Any]
    disruptions: dict[str, Any]
    videos: list[dict[str, str]]

    @property
    def seconds(self) -> dict[str, float]:
        """Time by stage, in the order of the stages."""
        known = {s: summary["seconds"] for s, summary in self.stages.items() if "seconds" in summary}
        for stage in REPEATED:
            known |= {stage: sum(done[stage].get("seconds", 0) for done in self.rounds if stage in done)}
        known = {stage: seconds for stage, seconds in known.items() if stage in self.stages}
        known |= self.results.get("seconds") or {}
        return {stage: known[stage] for stage in STAGES if stage in known}

    def part(self, key: str, stage: str) -> Any:
        """A part of the results or, before they are written, of the summary of the stage that found it."""
        return self.results[key] if key in self.results else self.stages.get(stage, {}).get(key)

    @property
    def audits(self) -> list[dict[str, Any]]:
        """Of the whole run, or of what is complete of it."""
        so_far = [audit for done in self.rounds for audit in done.get("improve", {}).get("audits", [])]
        return self.results.get("audits", so_far)

    @property
    def todo(self) -> list[tuple[str, bool]]:
        """Every stage in order, those of rounds as often as there are rounds, and whether it is complete."""
        found = [(stage, stage in self.stages) for stage in ("demos", "sft")]
        for number, done in enumerate(self.rounds, start=1):
            stages = STAGES[2:-1] if number == 1 else REPEATED
            found += [(f"{stage} {number}" if len(self.rounds) > 1 else stage, stage in done) for stage in stages]
        return found if self.only_recorded else [*found, ("evaluate", "evaluate" in self.stages)]

    @property
    def only_recorded(self) -> bool:
        """Whether there is no simulator in which the run's policies could be evaluated."""
        env = (self.config.get("config") or {}).get("env")
        return isinstance(env, dict) and env.get("kind") == "RecordedConfig"

    def setting(self, name: str) -> Any:
        """The first value of that name anywhere in the nested config."""
        return _find(self.config.get("config"), name)

    @property
    def early_iterations(self) -> int:
        """GRPO iterations of every round but the last."""
        return _early_iterations(self.config)

    def settings(self) -> list[tuple[str, Any]]:
        """All leaves of the config under dotted names, as the command line spells them."""
        return _leaves(self.config.get("config") or {}, "")

    def shown(self, section: str) -> list[dict[str, str]]:
        return [video for video in self.videos if video["section"] == section]

    def command(self, stage: str) -> str:
        """What to type to get that stage."""
        recipe, name, stage = str(self.config.get("recipe", "RECIPE")), self.path.name, stage.split()[0]
        return f"wmpo {COMMAND.get(stage, stage)} {recipe}" + (f" --name {name}" if name != recipe else "")


def read_run(path: Path) -> Run:
    if not path.is_dir():
        raise ValueError(f"{path} is not the folder of a run")
    config = _json(path / "config.json", {})
    folders = [path, *(path / f"round-{i}" for i in range(2, 1 + (_find(config, "num_rounds") or 1)))]
    rounds = [{stage: _json(folder / "stages" / f"{stage}.json", None) for stage in STAGES} for folder in folders]
    done = [{stage: summary for stage, summary in found.items() if summary is not None} for found in rounds]
    metrics = [{stage: _lines(folder / "metrics" / f"{stage}.jsonl") for stage in STAGES} for folder in folders]
    episodes = _lines(path / "ledger.jsonl")
    # runs are deterministic: an episode that an interruption forced to be played again wrote the same line again
    unique = {json.dumps(row, sort_keys=True): row for row in episodes}
    return Run(
        path=path.resolve(),
        config=config,
        rounds=done,
        stages={stage: summary for found in done for stage, summary in found.items()},
        metrics={stage: _latest([found[stage] for found in metrics]) for stage in STAGES}
        | {"improve": _counted_on([found["improve"] for found in metrics], _early_iterations(config))},
        episodes=list(unique.values()),
        played_again=len(episodes) - len(unique),
        results=_json(path / "results.json", {}),
        fidelity=_json(path / "stages" / "fidelity.json", {}),
        disruptions=_json(path / "stages" / "disruptions.json", {}),
        videos=_json(path / "videos" / "index.json", []),
    )


def _latest(rounds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return next((rows for rows in reversed(rounds) if rows), [])


def _counted_on(rounds: list[list[dict[str, Any]]], each: int) -> list[dict[str, Any]]:
    """Iterations of all rounds, ``each`` of them in a round."""
    return [
        row | {"iteration": i * each + row["iteration"]}
        for i, rows in enumerate(rounds)
        for row in rows
        if "iteration" in row
    ]


def _early_iterations(config: dict[str, Any]) -> int:
    """Older folders have as many in every round."""
    return _find(config, "early_iterations") or _find(config, "num_iterations") or 0


def _json(path: Path, otherwise: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else otherwise
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run its stage again") from error


def _lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines; one that a crash tore is left out, as the run itself does."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [row for row in rows if isinstance(row, dict)]


def _find(nested: Any, name: str) -> Any:
    if not isinstance(nested, dict):
        return None
    if name in nested:
        return nested[name]
    return next((value for value in (_find(inner, name) for inner in nested.values()) if value is not None), None)


def _leaves(nested: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in nested.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found

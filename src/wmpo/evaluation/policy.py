"""Success in the real environment, with intervals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from wmpo.evaluation.statistics import paired_difference, wilson
from wmpo.protocols import ChunkEnv, Policy
from wmpo.rollout.run import run_episodes
from wmpo.types import Starts


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """Episodes of one policy under one decoding, one per start."""

    success: Bool[np.ndarray, " n"]
    num_steps: Int[np.ndarray, " n"]
    temperature: float

    def summary(self) -> dict[str, Any]:
        """Success rate with Wilson's 95 % interval, and the mean length of successful episodes (None without any)."""
        wins, count = int(self.success.sum()), len(self.success)
        steps = float(self.num_steps[self.success].mean()) if wins else None
        return {
            "success": wins / count,
            "n": count,
            "interval": list(wilson(wins, count)),
            "mean_success_steps": steps,
            "decoding": decoding(self.temperature),
        }

    def clearly_above(self, rate: float) -> bool:
        """By more than one standard error."""
        return bool(self.success.mean() - self.success.std() / len(self.success) ** 0.5 > rate)

    def part(self, which: Bool[np.ndarray, " n"]) -> Outcomes:
        """Of some starts."""
        return replace(self, success=self.success[which], num_steps=self.num_steps[which])

    def kept(self) -> dict[str, Any]:
        """As JSON; :meth:`of` reads it again."""
        return {
            "success": self.success.tolist(), "num_steps": self.num_steps.tolist(), "temperature": self.temperature
        }  # fmt: skip

    @classmethod
    def of(cls, kept: dict[str, Any]) -> Outcomes:
        return cls(
            success=np.array(kept["success"]), num_steps=np.array(kept["num_steps"]), temperature=kept["temperature"]
        )


def decoding(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"T = {temperature:g}"


def play_starts(env: ChunkEnv, policy: Policy, starts: Starts, temperature: float, *, seed: int) -> Outcomes:
    """One episode from each start."""
    rollouts = run_episodes(env, policy, starts, temperature=temperature, seed=seed)
    return Outcomes(success=rollouts.success.numpy(), num_steps=rollouts.num_steps.numpy(), temperature=temperature)


def difference(base: Outcomes, improved: Outcomes) -> dict[str, Any]:
    """Improved minus base on the same starts, in points."""
    points, interval = paired_difference(base.success, improved.success)
    return {"points": points, "interval": list(interval)}

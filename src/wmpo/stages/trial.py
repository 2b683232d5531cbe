"""The test of one method's policy, and the real episodes that it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from wmpo.data.splits import start_seeds
from wmpo.envs.ledger import Ledger
from wmpo.envs.simulated import Purpose
from wmpo.evaluation.audit import loss
from wmpo.evaluation.compare import BASE
from wmpo.evaluation.policy import Outcomes, decoding
from wmpo.policy.small import SmallPolicy
from wmpo.stages.job import Job, finish
from wmpo.stages.measure import best_decoding, play_once
from wmpo.stages.models import load_policy

WMPO = ("wmpo", "wmpo-rft")
"""Methods whose policy is that of a whole run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Real episodes of one method, by the ledger. ``demonstrations`` are those of the base policy."""

    demonstrations: int
    budget: int
    audit: int
    validation: int
    test: int


def trial(job: Job, method: str) -> None:
    """Chooses the decoding on the validation starts that all methods share, then plays the test starts with it. Where
    the base policy solves clearly more of them (as in ``evaluate``), it is handed in instead, with its own outcomes.

    Raises RuntimeError when the ledger holds more episodes of the method than its budget: then something is broken.
    """
    log, config = job.log(f"{method}-test"), job.experiment.evaluate
    env = job.real_env(Purpose("test", method), frame_stride=job.experiment.policy.chunk_size)
    policy = _policy(job, method)
    best = best_decoding(job, log, env, policy, method)
    base = job.root.summary(f"{BASE}-test") if method != BASE else None
    if base and loss(base["validated"], best.success.tolist()) > 1:
        handed_in = BASE
        success, num_steps = (np.array(base[key]) for key in ("success", "num_steps"))
        outcomes = Outcomes(success=success, num_steps=num_steps, temperature=base["temperature"])
    else:
        handed_in = method
        outcomes = play_once(job, log, env, policy, "test", method, config.num_test, best.temperature)
    cost, budget = cost_of(job, method), job.experiment.collect.num_episodes
    if cost.budget > budget:
        raise RuntimeError(
            f"{job.root.ledger}: {method} has played {cost.budget} real episodes, more than its {budget}"
        )
    summary = {
        "temperature": outcomes.temperature,
        "validation": float(best.success.mean()),
        "validated": best.success.tolist(),
        "handed_in": handed_in,
        "starts": start_seeds("test", job.seed, 0, config.num_test),
        "success": outcomes.success.tolist(),
        "num_steps": outcomes.num_steps.tolist(),
        "real_episodes": asdict(cost),
    }
    rate = 100 * outcomes.success.mean()
    kept = " (the base policy: it solved more validation starts)" if handed_in != method else ""
    finish(log, summary, f"{rate:.1f} % of {config.num_test} test starts, {decoding(outcomes.temperature)}{kept}")


def _policy(job: Job, method: str) -> SmallPolicy:
    if method in WMPO:
        return load_policy(job.folder_of(job.experiment.num_rounds), "improved")
    return load_policy(job.root, method)


_PAID: dict[str, tuple[tuple[str, str], ...]] = {
    BASE: (),
    **dict.fromkeys(WMPO, (("collection", ""),)),
    "grpo-real": (("training", "grpo-real"),),
    "dpo": (("collection", "base"), ("more", "base")),
    "rft": (("collection", "base"), ("more", "base")),
    "more-demos": (("more-demonstrations", "expert"),),
}
"""(purpose, policy; empty: any) of the episodes that a method's budget pays for."""


def cost_of(job: Job, method: str) -> Cost:
    """Counted in the run's ledger. WMPO's first round and the episodes that other methods share with it count for
    each of them."""
    rows = [(str(row["purpose"]), str(row["policy"])) for row in Ledger(job.root.ledger).unique()]
    paid = _PAID[method]
    return Cost(
        demonstrations=sum(purpose == "demonstrations" for purpose, _ in rows),
        budget=sum((purpose, policy) in paid or (purpose, "") in paid for purpose, policy in rows),
        audit=sum(purpose == "audit" and _audited(policy, method) for purpose, policy in rows),
        validation=sum(row == ("validation", method) for row in rows),
        test=sum(row == ("test", method) for row in rows),
    )


def _audited(policy: str, method: str) -> bool:
    """Audits of WMPO are named by round and iteration; other methods are compared with the base policy's audit."""
    return policy.startswith("round ") if method in WMPO else policy in (method, BASE)

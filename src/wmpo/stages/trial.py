"""The test of one method's policy, and the real episodes that it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from wmpo.data.splits import start_seeds
from wmpo.envs.ledger import Ledger
from wmpo.envs.simulated import Purpose
from wmpo.evaluation.audit import loss
from wmpo.evaluation.compare import BASE
from wmpo.evaluation.policy import Outcomes, decoding
from wmpo.protocols import PolicyNet
from wmpo.report.run import StageLog
from wmpo.stages.job import Job, commit, finish
from wmpo.stages.measure import best_decoding, play_once

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


def trial(job: Job, method: str, *, policy: PolicyNet | None, budget: int, number: int = 0, failed: str = "") -> None:
    """Chooses the decoding on the validation starts that all methods share, then plays the test starts with it. Where
    the base policy solves clearly more of them (as in ``evaluate``), it is handed in instead, with its own outcomes.

    Args:
        policy: None where the training ended with ``failed``. Then the base policy is handed in, too: left out, the
            method would be measured on its lucky runs alone.
        number: the round of a lifelong run whose policy is tested: its summary lies in the round's folder.

    Raises ValueError when the ledger holds more episodes of the method than its budget.
    """
    name, num_test = f"{method}, round {number}" if number else method, job.experiment.evaluate.num_test
    log = StageLog(job.folder_of(number or 1), f"{method}-test", label=f"{method}-test", quiet=job.quiet)
    base = (job.root.summary(f"{BASE}-test") or {}) if method != BASE else {}
    if policy is None:
        outcomes, validated, why = Outcomes.of(base), base["validated"], failed
    else:
        outcomes, validated, why = _tested(job, log, policy, name, base)
    cost = cost_of(job, method, name)
    if cost.budget > budget:
        raise ValueError(
            f"{job.root.ledger}: {method} has played {cost.budget} real episodes, more than its {budget}, perhaps "
            "because some that an interruption forced to be played again ended otherwise, with other code or on "
            f"another machine; delete {job.root.path} and run wmpo compare again"
        )
    summary = {
        **outcomes.kept(),
        "validation": sum(validated) / len(validated),
        "validated": validated,
        "handed_in": BASE if why else method,
        "why": why,
        "starts": start_seeds("test", job.seed, 0, num_test),
        "real_episodes": asdict(cost),
        "commit": commit(),
    }
    rate = 100 * outcomes.success.mean()
    kept = f" (the base policy: {why})" if why else ""
    finish(log, summary, f"{rate:.1f} % of {num_test} test starts, {decoding(outcomes.temperature)}{kept}")


def _tested(
    job: Job, log: StageLog, policy: PolicyNet, name: str, base: dict[str, Any]
) -> tuple[Outcomes, list[bool], str]:
    """Outcomes on the test starts, those on the validation starts, and why the base policy is handed in, or nothing.
    ``base``: the summary of its own test, if it is not this one."""
    env = job.real_env(Purpose("test", name), frame_stride=job.experiment.policy.chunk_size)
    best = best_decoding(job, log, env, policy, name)
    validated: list[bool] = best.success.tolist()
    if base and loss(base["validated"], validated) > 1:
        return Outcomes.of(base), validated, "it solved more validation starts"
    num_test = job.experiment.evaluate.num_test
    return play_once(job, log, env, policy, "test", name, num_test, best.temperature), validated, ""


_PAID: dict[str, tuple[tuple[str, str], ...]] = {
    BASE: (),
    **dict.fromkeys(WMPO, (("collection", ""),)),
    "grpo-real": (("training", "grpo-real"),),
    "dpo": (("collection", "base"), ("more", "base")),
    "rft": (("collection", "base"), ("more", "base")),
    "more-demos": (("more-demonstrations", "expert"),),
}
"""(purpose, policy; empty: any) of the episodes that a method's budget pays for."""


def cost_of(job: Job, method: str, name: str) -> Cost:
    """Counted in the run's ledger; ``name`` is the policy's there. WMPO's first round and the episodes that other
    methods share with it count for each of them."""
    rows = [(str(row["purpose"]), str(row["policy"])) for row in Ledger(job.root.ledger).unique()]
    paid = _PAID[method]
    return Cost(
        demonstrations=sum(purpose == "demonstrations" for purpose, _ in rows),
        budget=sum((purpose, policy) in paid or (purpose, "") in paid for purpose, policy in rows),
        audit=sum(purpose == "audit" and _audited(policy, method) for purpose, policy in rows),
        validation=sum(purpose == "validation" and _own(policy, name) for purpose, policy in rows),
        test=sum(row == ("test", name) for row in rows),
    )


def _own(policy: str, name: str) -> bool:
    """Among the base policy's are those that were found to solve too much."""
    return policy == name or (name == BASE and policy.startswith(f"{BASE} of "))


def _audited(policy: str, method: str) -> bool:
    """Audits of WMPO are named by round and iteration; other methods are compared with the base policy's audit."""
    return policy.startswith("round ") if method in WMPO else policy in (method, BASE)

"""The test of one method's policy, and the real episodes that it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass

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


def trial(job: Job, method: str, *, policy: PolicyNet, budget: int, number: int = 0) -> None:
    """Chooses the decoding on the validation starts that all methods share, then plays the test starts with it. Where
    the base policy solves clearly more of them (as in ``evaluate``), it is handed in instead, with its own outcomes.

    Args:
        number: the round of a lifelong run whose policy is tested: its summary lies in the round's folder.

    Raises ValueError when the ledger holds more episodes of the method than its budget.
    """
    name, config = _named(method, number), job.experiment.evaluate
    log = StageLog(job.folder_of(number or 1), f"{method}-test", label=f"{method}-test", quiet=job.quiet)
    env = job.real_env(Purpose("test", name), frame_stride=job.experiment.policy.chunk_size)
    best = best_decoding(job, log, env, policy, name)
    base = job.root.summary(f"{BASE}-test") if method != BASE else None
    if base and loss(base["validated"], best.success.tolist()) > 1:
        _finish(
            job,
            log,
            method,
            name,
            Outcomes.of(base),
            best.success.tolist(),
            budget,
            why="it solved more validation starts",
        )
        return
    outcomes = play_once(job, log, env, policy, "test", name, config.num_test, best.temperature)
    _finish(job, log, method, name, outcomes, best.success.tolist(), budget)


def hand_in_base(job: Job, method: str, *, budget: int, number: int = 0, failed: str) -> None:
    """The test of a method whose training ended with ``failed``: the base policy's own outcomes. Left out, the method
    would be measured on its lucky runs alone."""
    log = StageLog(job.folder_of(number or 1), f"{method}-test", label=f"{method}-test", quiet=job.quiet)
    base = job.root.summary(f"{BASE}-test") or {}
    _finish(job, log, method, _named(method, number), Outcomes.of(base), base["validated"], budget, why=failed)


def _named(method: str, number: int) -> str:
    """A policy in the ledger."""
    return f"{method}, round {number}" if number else method


def _finish(
    job: Job,
    log: StageLog,
    method: str,
    name: str,
    outcomes: Outcomes,
    validated: list[bool],
    budget: int,
    *,
    why: str = "",
) -> None:
    """``why`` the base policy is handed in; "": it is not."""
    cost = cost_of(job, method, name)
    if cost.budget > budget:
        raise ValueError(
            f"{job.root.ledger}: {method} has played {cost.budget} real episodes, more than its {budget}, perhaps "
            "because some that an interruption forced to be played again ended otherwise, with other code or on "
            f"another machine; delete {job.root.path} and run wmpo compare again"
        )
    num_test = job.experiment.evaluate.num_test
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

"""WMPO: on-policy GRPO on imagined episodes (arXiv 2511.09515, algorithm 1).

Differs from the paper: dynamic sampling has a cap; the policy's real success is audited while it dreams, training stops
when imagined and real success part, and the policy is kept that the audits prefer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from wmpo.checkpoint import load_tensors, save_tensors
from wmpo.evaluation.audit import Audit, AuditConfig, better, parted, signed
from wmpo.protocols import Learner, Policy, Sampler
from wmpo.report.run import StageLog
from wmpo.rl.grpo import GRPOConfig, minibatches
from wmpo.rollout.groups import GroupConfig, GroupedRollouts, sample_groups
from wmpo.types import Starts


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Guards against learning from what only the dream shows. Off, as in the paper."""

    verify: bool = False
    "An imagined success counts only when the same actions succeed again under other noise and in smaller steps."
    trust: float = 1.0
    "Episodes in which two dreams of the same actions part further than in this share of held-out replays are left out."
    branch_share: float = 0.0
    "Part of the starts that lie in the middle of recorded episodes (VLA-MBPO's branched rollouts)."
    branch_chunks: int = 4
    "Length of the episodes that begin there."

    @property
    def needs_shadow(self) -> bool:
        return self.verify or self.trust < 1


@dataclass(frozen=True, kw_only=True)
class ImproveConfig:
    """GRPO in imagination."""

    num_iterations: int = 8
    "Iterations of imagine, compare, learn, publish, check; those of the last round, whose policy is handed in."
    early_iterations: int = 4
    "The same in a round before, whose policy only plays the next one's episodes; 0: as many."
    temperature: float = 0.25
    "Sampling temperature of imagined episodes."
    groups: GroupConfig = field(default_factory=GroupConfig)
    "How many episodes an iteration imagines."
    micro_batch: int = 0
    "Episodes that one process imagines at once (also in reward); changes memory, not results; 0: all that it is given."
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    "The learner."
    audit: AuditConfig = field(default_factory=AuditConfig)
    "Real validation episodes that watch the dream."
    guards: GuardConfig = field(default_factory=GuardConfig)
    "Guards against what only the dream shows."
    share_noise: bool = False
    "Siblings share the world model's noise, so that only their actions tell them apart."
    score_every: int = 1
    "Imagined frames between two looks for success; from 2 on only frames are decoded that these or the policy need."

    @property
    def early(self) -> ImproveConfig:
        """Of a round before the last."""
        return replace(self, num_iterations=self.early_iterations or self.num_iterations)


AuditPolicy = Callable[[Policy, int], Audit]
"""(policy, iteration) -> what real validation episodes and their replays say about it."""


@dataclass
class _Progress:
    """What a checkpoint holds beside the learner. ``kept`` is the iteration of the best policy so far (0: base)."""

    iteration: int = 0
    kept: int = 0
    audits: list[Audit] = field(default_factory=list)
    stopped: str = ""


def improve(
    sampler: Sampler,
    learner: Learner,
    starts: Starts,
    config: ImproveConfig,
    audit: AuditPolicy | None,
    *,
    seed: int,
    checkpoint: Path,
    log: StageLog,
    begun: bool = False,
    schedule: Sequence[GroupConfig] | None = None,
    kind: str = "imagined",
) -> dict[str, Any]:
    """Trains the learner's policy in place and leaves the best audited one in it.

    The first audit is of the policy to begin with: later ones, on the same starts, are compared with it. Without audits
    (None, or ``max_episodes`` below ``num_episodes``) the last policy is kept.

    Args:
        begun: the policy has been improved before, so a dream that has no more to teach is an end and no error.
        schedule: groups of each iteration, instead of the same in ``num_iterations``.
        kind: what the sampler plays, for the log: ``imagined`` or ``real``.

    Raises ValueError when no group of the first iteration is mixed: such a dream teaches nothing.
    """
    schedule = schedule or [config.groups] * config.num_iterations
    progress = _restore(learner, checkpoint, log)
    sampler.load(learner.publish())
    while True:
        over = bool(progress.stopped) or progress.iteration == len(schedule)
        if audit and _audit_due(progress, config.audit, over):  # check
            _check(progress, audit(learner.policy, progress.iteration), learner, checkpoint, log)
            save_tensors(checkpoint, learner.save(), _header(progress))
        if over or progress.stopped:
            break
        iteration = progress.iteration
        episodes = sample_groups(  # imagine
            sampler, starts, schedule[iteration], temperature=config.temperature, seed=seed, iteration=iteration
        )
        if episodes.kept is None:
            progress.stopped = _nothing_to_learn(episodes, begun or iteration > 0)
            continue
        batches = minibatches(episodes.kept, config.grpo, seed=seed, iteration=iteration)  # compare
        metrics = [learner.step(batch) for batch in batches]  # learn
        sampler.load(learner.publish())  # publish
        progress.iteration += 1
        _report(log, progress.iteration, len(schedule), episodes, metrics, kind)
        save_tensors(checkpoint, learner.save(), _header(progress))
        log.keep_time()
    if progress.audits:
        _restore_best(learner, progress, checkpoint)
    ended = {"stopped": progress.stopped or "all iterations done"}
    return _header(progress) | ended | {"kept_iteration": progress.kept if progress.audits else progress.iteration}


def affordable(budget: int, config: GroupConfig) -> list[GroupConfig]:
    """The schedule that a budget of real episodes pays for, the last iteration perhaps with fewer groups.

    Raises ValueError when it is less than one group, or when dynamic sampling would spend it unforeseen.
    """
    if budget < config.group_size:
        raise ValueError(f"a budget of {budget} real episodes is less than one group of {config.group_size} siblings")
    if config.dynamic_sampling:
        raise ValueError("dynamic sampling would throw real episodes of the budget away; switch it off")
    left = range(budget // config.group_size, 0, -config.num_groups)
    return [replace(config, num_groups=min(config.num_groups, groups)) for groups in left]


def _audit_due(progress: _Progress, config: AuditConfig, over: bool) -> bool:
    """Before the first iteration and after each ``every``, while episodes are left for one more: the policy that
    training ends with is always audited, as no other one can be preferred to the first."""
    if any(audit.iteration == progress.iteration for audit in progress.audits):
        return False
    left = config.max_audits - len(progress.audits)
    return left > 0 if over else left > 1 and progress.iteration % config.every == 0


def _check(progress: _Progress, found: Audit, learner: Learner, checkpoint: Path, log: StageLog) -> None:
    """Keeps the best policy and stops when the dream and reality part."""
    reason = parted(found, progress.audits)
    verdict = reason or "solves fewer of the starts than before, but that may be chance: not preferred"
    if not reason and better(found, progress.audits):
        verdict = _preferred(found, progress.audits)
        progress.kept = found.iteration
        save_tensors(_best(checkpoint), learner.publish(), {"iteration": found.iteration})
    progress.audits.append(replace(found, verdict=verdict))
    progress.stopped = reason or progress.stopped
    log.note(
        f"audit after {found.iteration} iterations: real {100 * found.real:.0f} %, imagined "
        f"{100 * found.imagined:.0f} %, J {signed(found.j)} (n = {found.n}); {progress.audits[-1].verdict}"
    )
    if found.warning:
        log.note(f"warning: {found.warning}")


def _preferred(found: Audit, earlier: Sequence[Audit]) -> str:
    if not earlier:
        return "the only audit: kept" if found.iteration else "the policy to start from"
    if found.real >= max(audit.real for audit in earlier):
        return "as good as before or better: preferred"
    return "solves fewer of the starts than before, but that may be chance: preferred, as it has learned longer"


def _nothing_to_learn(episodes: GroupedRollouts, begun: bool) -> str:
    what = f"imagined success is {100 * episodes.success:.0f} % and none of {episodes.num_groups} groups is mixed"
    if not begun:
        raise ValueError(
            f"{what}, so there is nothing to compare; raise improve.groups.max-rounds or improve.temperature, "
            "collect with a policy that succeeds sometimes, or check the reward model's TPR and FPR in the report"
        )
    return f"{what}: imagination has no more to teach"


def _report(
    log: StageLog,
    iteration: int,
    num_iterations: int,
    episodes: GroupedRollouts,
    metrics: list[dict[str, float]],
    kind: str,
) -> None:
    mean = {key: sum(m[key] for m in metrics) / len(metrics) for key in metrics[0]}
    log.write(
        iteration=iteration,
        **{f"{kind}_success": episodes.success},
        mean_length=episodes.mean_length,
        mixed_groups=episodes.num_mixed,
        groups=episodes.num_groups,
        trusted=float(episodes.kept.trusted.float().mean()) if episodes.kept else 0.0,
        **mean,
    )
    note = f"{kind} success {100 * episodes.success:.0f} %, {episodes.num_mixed} of {episodes.num_groups} groups mixed"
    log.progress(iteration, num_iterations, note)


def _best(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.stem}_best.safetensors")


def _header(progress: _Progress) -> dict[str, Any]:
    audits = [asdict(audit) for audit in progress.audits]
    return {"iteration": progress.iteration, "kept": progress.kept, "audits": audits, "stopped": progress.stopped}


def _restore(learner: Learner, checkpoint: Path, log: StageLog) -> _Progress:
    if not checkpoint.exists():
        log.resume("iteration", 1)
        save_tensors(_best(checkpoint), learner.publish(), {"iteration": 0})
        return _Progress()
    tensors, header = load_tensors(checkpoint)
    learner.restore(tensors)
    log.resume("iteration", header["iteration"] + 1)
    audits = [
        Audit(**audit | {key: tuple(audit[key]) for key in ("j_interval", "solved")}) for audit in header["audits"]
    ]
    return _Progress(header["iteration"], header["kept"], audits, header["stopped"])


@torch.no_grad()
def _restore_best(learner: Learner, progress: _Progress, checkpoint: Path) -> None:
    tensors, header = load_tensors(_best(checkpoint))
    assert header["iteration"] == progress.kept, (header, progress.kept)
    learner.policy.load_state_dict(tensors)

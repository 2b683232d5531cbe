"""The top of the report: what the run shows, in big figures and in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from wmpo.report import plots
from wmpo.report.page import between, duration, esc, number, percent, signed, tiles
from wmpo.report.reading import Run

UNPLAYED = (
    "Real success was not measured, as this run knows its robot from recorded episodes only; the robot tells: "
    "<code>wmpo robot deploy SETUP.py --policy RUN --to FOLDER</code>"
)
ROSY = 0.2  # imagined success this far above the real one is called too optimistic
FEW = 4  # failures or successes, below which an audit cannot tell them apart, as in evaluation/audit.py


def headline(run: Run) -> str:
    tasks = [run.setting("task"), *(run.setting("more_tasks") or ())]
    facts = [", ".join(filter(None, tasks)), f"seed {run.config.get('seed', '?')}", run.config.get("machine")]
    about = " · ".join(esc(fact) for fact in facts if fact)
    title = f"<h1>{esc(run.path.name)} <small>· {about}</small></h1>"
    if not run.results:
        return title + _progress(run)
    base, improved, gain = (run.results[key]["best"] for key in ("base", "improved", "difference"))
    tone, sentence = verdict(run.results)
    trust_tone, belief = trust(run.audits, run.part("kept_iteration", "improve"))
    plot = plots.success(run.results["base"], run.results["improved"])
    big = f"<s>{percent(base['success'])}</s> <em>→</em> {percent(improved['success'])}"
    points = f"<b class='tone {tone}'>{signed(gain['points'])} points</b>"
    span = f"<span>(95\u202f% interval {between(gain['interval'], sign=True)})</span>"
    says = f"<p class='say {tone}'>{sentence}</p><p class='say {trust_tone}'>{belief}</p>"
    text = f"<div class=big>{big}</div><p class=gain>real success, {points} {span}</p>{says}"
    return f"{title}<div class=hero><div>{text}</div>{plot}</div>{_facts(run)}"


def _facts(run: Run) -> str:
    learned = sum(row["purpose"] in ("demonstrations", "collection") for row in run.episodes)
    speed = run.results.get("throughput") or {}
    real = (run.results.get("reward") or {}).get("real") or {}
    facts = [
        ("learned from", f"{learned} episodes", "real ones; GRPO itself used none"),
        ("took", duration(sum(run.seconds.values())), "all stages together"),
        ("imagination runs at", number(speed.get("ratio"), 1, "×"), "the simulator's steps per second"),
        ("success classifier", f"F1 {number(real.get('f1'), 3)}", f"on {real.get('n', '?')} held-out real episodes"),
    ]
    return tiles(facts)


def _progress(run: Run) -> str:
    steps = "".join(f"<li class={'done' if done else 'open'}>{'✓ ' * done}{stage}</li>" for stage, done in run.todo)
    following = next((stage for stage, done in run.todo if not done), "evaluate")
    says = f"This run is not finished, so it has no result yet. Next: <code>{esc(run.command(following))}</code>"
    if run.only_recorded and all(done for _, done in run.todo):
        says = UNPLAYED
    count = f"{sum(done for _, done in run.todo)} of {len(run.todo)} <s>stages</s>"
    return f"<div class=big>{count}</div><ul class=steps>{steps}</ul><p class='say unsure'>{says}</p>"


def verdict(results: Mapping[str, Any]) -> tuple[str, str]:
    """What the run shows, in plain words: (good | unsure | bad, sentence). The interval decides, not the hope."""
    best, n = results["difference"]["best"], results["improved"]["best"]["n"]
    points, (low, high) = best["points"], best["interval"]
    if results.get("handed_in") == "base":
        solved = results["validation"]
        return "unsure", (
            f"No improvement: of {solved['n']} validation starts the policy from imagination solves "
            f"{solved['improved']}, the base policy {solved['base']}. So the base policy is handed in."
        )
    cloned = results.get("config", {}).get("clone", {}).get("enabled")  # then iteration 0 has learned something already
    if results.get("kept_iteration") == 0 and not cloned:
        return "unsure", (
            "No improvement: no policy trained in imagination did better than the base policy in the real audits, so "
            "the base policy was kept."
        )
    if low > 0:
        return "good", (
            f"The improved policy is better in the real environment: on the same {n} test starts it solves "
            f"{number(points, 1)} points more, and chance alone hardly explains that: the whole interval is above zero."
        )
    if high < 0:
        return "bad", (
            f"The improved policy is worse in the real environment: on the same {n} test starts it solves "
            f"{number(-points, 1)} points fewer. What it learned in imagination does not hold in reality."
        )
    return "unsure", (
        f"This run does not show an improvement: on {n} test starts the difference is {signed(points)} points, and "
        "that may be chance, because zero lies inside the interval."
    )


def trust(audits: Sequence[Mapping[str, Any]], kept: int | None = None) -> tuple[str, str]:
    """What the audits say about the dream, in plain words. J is 1 for perfect foresight and 0 for coin tosses."""
    known = [a for a in audits if isinstance(a.get("j"), int | float) and math.isfinite(a["j"])]
    if not known:
        return "unsure", "No audit compared the dream with reality, so nothing here says whether it can be trusted."
    chance = [a for a in known if a["j"] <= 0]
    telling = [a for a in chance if round(a["n"] * min(a["real"], 1 - a["real"])) >= FEW]
    lied = [a for a in telling if a["imagined"] > a["real"]]
    rosy = [a for a in known if a["imagined"] - a["real"] > ROSY and a not in chance]
    if lied:
        before = "" if kept is None or kept >= lied[0]["iteration"] else f" The policy of iteration {kept} was kept."
        return "bad", (
            f"The dream lied at iteration {_list(lied)}: replaying real episodes, it did not tell solved from unsolved "
            f"ones ({_worst(lied)}).{before}"
        )
    if rosy:
        return "unsure", (
            f"The dream was too optimistic at iteration {_list(rosy)}: it saw over 20 points more success than there "
            "was, although it still told good episodes from bad ones (J above 0)."
        )
    if telling:
        return "bad", (
            f"At iteration {_list(telling)} the dream did not tell solved from unsolved episodes when it replayed them "
            f"({_worst(telling)}): it did not see too much success, but what a policy learns there is chance."
        )
    if chance:
        return "unsure", (
            f"At iteration {_list(chance)} the dream did not tell solved from unsolved episodes ({_worst(chance)}); "
            "nearly all of them ended alike, so that says little."
        )
    low, high = min(a["j"] for a in known), max(a["j"] for a in known)
    certain = all((a.get("j_interval") or [0])[0] > 0 for a in known)
    doubt = "" if certain else " Audits are small: in some, J's interval still reaches zero."
    span = number(low) if low == high else f"{number(low)} to {number(high)}"
    return "good" if certain else "unsure", (
        f"In every one of the {len(known)} audits the dream's outcomes followed the real ones (J = {span}).{doubt}"
    )


def _worst(audits: Sequence[Mapping[str, Any]]) -> str:
    worst = min(audits, key=lambda a: a["j"])
    return f"J = {number(worst['j'])}, imagined {percent(worst['imagined'])}, real {percent(worst['real'])}"


def _list(audits: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(str(a["iteration"]) for a in audits))  # a round may begin with two: cloning is between
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

"""One HTML page from the folder of a run. It reads files only, so it can also tell of an unfinished run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from wmpo.report import disruptions, fidelity, page, plots
from wmpo.report.headline import UNPLAYED, headline, trust
from wmpo.report.page import between, cell, duration, esc, number, percent, signed, table, tiles
from wmpo.report.reading import REPEATED, Run, read_run

PURPOSES = {
    "demonstrations": "the expert's, to clone the base policy",
    "collection": "the policy's, to train world model and classifier",
    "validation": "to choose how to decode",
    "audit": "to check the dream while the policy improves",
    "test": "to measure; never learned from",
    "fidelity": "to compare with the same policies in the dream",
    "disruptions": "to measure both policies when something is disturbed",
    "served": "by hand or by a policy beside the dream, in wmpo serve",
}
HEALTH = {
    "mean_length": "episode length",
    "mixed_groups": "mixed groups",
    "kl": "KL to last policy",
    "entropy": "token entropy",
    "clip_fraction": "clipped tokens",
}
ABOUT = ("recipe", "seed", "commit", "version", "machine")
HALVES = "<div class=halves><span class=is-real>real</span><span class=is-dream>imagined</span></div>"


def render(run: Path) -> Path:
    """Writes ``report.html`` into the folder of a run and returns its path."""
    read = read_run(run)
    foot = f"wmpo {esc(read.config.get('version', ''))} · commit {esc(read.config.get('commit', 'unknown'))}"
    text = page.document(
        f"{read.path.name}: a robot policy improved in imagination", headline(read), sections(read), foot
    )
    return page.write(run / "report.html", text)


def sections(run: Run, wanted: Container[str] | None = None) -> list[tuple[str, str, str]]:
    """(anchor, title, body as HTML) of the page's sections, or of those among the ``wanted`` anchors."""
    known: list[tuple[str, str, Callable[[Run], str]]] = [
        ("results", "Results", _results),
        ("learning", "Learning in imagination", _learning),
        ("audits", "Audits", _audits),
        *([("rounds", "Rounds", _rounds)] if len(run.rounds) > 1 else []),
        ("dream", "Can the dream be trusted?", _dream),
        ("fidelity", "Fidelity", lambda run: fidelity.section(run) if run.fidelity else _missing(run, "fidelity")),
        *([("disruptions", "Disruptions", disruptions.section)] if run.disruptions else []),
        ("classifier", "Success classifier", _reward),
        ("videos", "Before and after", _before_after),
        ("time", "Time", _time),
        ("episodes", "Real episodes", _ledger),
        ("config", "Configuration", _config),
    ]
    return [(anchor, title, body(run)) for anchor, title, body in known if wanted is None or anchor in wanted]


def _missing(run: Run, stage: str) -> str:
    """What a section says before its stage is complete."""
    if stage == "evaluate" and run.only_recorded:
        return f"<p class=empty>{UNPLAYED}</p>"
    state = "has begun but is not complete" if run.metrics.get(stage) else "has not run yet"
    return f"<p class=empty>Stage <b>{stage}</b> {state}. This makes it: <code>{esc(run.command(stage))}</code></p>"


def _results(run: Run) -> str:
    if not run.results:
        return _missing(run, "evaluate")
    base, improved, difference = (run.results[key] for key in ("base", "improved", "difference"))
    rows = []
    for name in ("greedy", "sampled", "best"):
        both, gain = (base[name], improved[name]), difference[name]
        chosen = " → ".join(esc(record["decoding"]) for record in both if "decoding" in record)
        rows.append(
            [f"{name}<small>{chosen}</small>"]
            + [cell(percent(record["success"]), between(record["interval"], 100)) for record in both]
            + [cell(signed(gain["points"]), between(gain["interval"], sign=True))]
            + [" → ".join(number(record.get("mean_success_steps"), 0) for record in both)]
        )
    lead = (
        f"Both policies play the same {improved['best']['n']} test starts in the real environment. None of these "
        "starts was used for training, collection, audits or the choice of decoding."
    )
    note = (
        "Small figures are 95\u202f% intervals: Wilson's for success, the paired one for the difference. Greedy takes "
        "the likeliest action, sampled draws one as in training, best is each policy's better decoding as chosen on "
        "validation starts."
    )
    head = ["decoding", "base", "improved", "difference, points", "steps to success"]
    return f"<p class=lead>{lead}</p>" + table(head, rows, note) + _tasks(run.results.get("tasks", {}))


def _tasks(tasks: Mapping[str, Any]) -> str:
    """Of a run of several tasks, each by itself."""
    rows = [
        [esc(sentence)]
        + [cell(percent(record["success"]), between(record["interval"], 100)) for record in both]
        + [cell(signed(found["difference"]["points"]), between(found["difference"]["interval"], sign=True))]
        + [str(both[0]["n"])]
        for sentence, found in tasks.items()
        if (both := (found["base"], found["improved"]))
    ]
    note = "One policy, one world model and one classifier for all of them, at each policy's best decoding."
    head = ["task", "base", "improved", "difference, points", "test starts"]
    return "<h3>Task by task</h3>" + table(head, rows, note) if rows else ""


def _learning(run: Run) -> str:
    rows, supervised = run.metrics["improve"], ("sft", "tokenizer", "world-model", "reward")
    losses = {stage: plots.column(run.metrics[stage], "step", "loss") for stage in supervised}
    drawn = plots.panels(losses, "Training losses")
    more = page.details("Losses of the supervised stages", drawn) if drawn else ""
    unfinished = "" if "improve" in run.stages else _missing(run, "improve")
    if not rows:
        return unfinished + more
    base = _collected(run)
    curve = plots.learning(rows, run.audits, base, run.part("kept_iteration", "improve"), _ends(run))
    health = plots.panels({title: plots.column(rows, "iteration", key) for key, title in HEALTH.items()}, "Health", 6)
    lead = (
        "The policy practises in the world model only. The line is what the dream believes; the dots, with 95\u202f% "
        "intervals, are what a few real episodes showed at the same iteration."
    )
    stopped = run.part("stopped", "improve")
    end = f"<p class=note>Why training ended: {esc(stopped)}.</p>" if stopped else ""
    return f"<p class=lead>{lead}</p>{unfinished}{curve}{end}<h3>Health of training, by iteration</h3>{health}{more}"


def _ends(run: Run) -> list[int]:
    """Iterations after which another round began."""
    each = run.early_iterations or 1
    return [i * each for i, done in enumerate(run.rounds) if i and "collect" in done]


def _audits(run: Run) -> str:
    audits, kept = run.audits, run.part("kept_iteration", "improve")
    if not audits:
        return "<p class=empty>No audit was played.</p>" if "improve" in run.stages else _missing(run, "improve")
    tone, sentence = trust(audits, kept)
    chosen = next((audit for audit in reversed(audits) if audit["iteration"] == kept), None)  # a clone, where two are
    rows = [
        [
            f"{audit['iteration']}{' · kept' * (audit is chosen)}",
            percent(audit["real"]),
            percent(audit["imagined"]),
            cell(number(audit["j"]), between(audit.get("j_interval"), digits=2)),
            str(audit["n"]),
            f"<p>{esc(audit['verdict'])}</p>" + _warned(audit),
        ]
        for audit in audits
    ]
    lead = (
        "Now and then the policy plays real episodes, and the world model replays the very same actions. J is the "
        "share of real successes that the dream sees too, less the share of real failures that it takes for successes: "
        "1 is perfect; 0 or less means that success in the dream says nothing about reality. The base policy's are "
        "held-out episodes. When a round begins, its new episodes, from which nothing has learned yet, judge the dream "
        "of the round before; the last round's policies play from the starts of held-out episodes, before they are "
        "trained and after."
    )
    head = ["iteration", "real", "imagined", "J", "episodes", "<p>verdict</p>"]
    said = f"<p class=lead>{lead}</p><p class='say {tone}'>{sentence}</p>"
    return said + table(head, rows, _remedy(audits)) + _guards(run)


def _guards(run: Run) -> str:
    """What each guard that is on would have dropped of replays whose outcomes are known, round by round."""
    rows = [
        [f"round {i}", esc(name), f"{worth['dropped']} of {worth['n']}", f"{worth['rightly']} of {worth['dropped']}"]
        for i, done in enumerate(run.rounds, start=1)
        for name, worth in done.get("improve", {}).get("guards", {}).items()
    ]
    trusted = [row["trusted"] for row in run.metrics["improve"] if "trusted" in row]
    if not rows:
        return ""
    share = f"In imagination it trusted {percent(sum(trusted) / len(trusted))} of the episodes." if trusted else ""
    lead = (
        "Guards drop what only the dream shows. On replays of held-out real episodes one can see what they would have "
        "dropped, and whether the dream was wrong there."
    )
    return f"<h3>Guards</h3><p class=lead>{lead}</p>" + table(["", "guard", "dropped", "rightly"], rows, share)


def _warned(audit: Mapping[str, Any]) -> str:
    """What is wrong; what to do about it stands below the table, once."""
    return f"<p><b>Warning:</b> {esc(audit['warning'].split('; ', 1)[0])}</p>" if audit.get("warning") else ""


def _remedy(audits: Sequence[Mapping[str, Any]]) -> str:
    said = [remedy for audit in audits if (remedy := str(audit.get("warning") or "").partition("; ")[2])]
    return f"Where there is a warning: {esc(said[0])}." if said else ""


def _rounds(run: Run) -> str:
    rows = []
    each = run.early_iterations or 1
    for i, done in enumerate(run.rounds):
        after = math.inf if i + 1 == len(run.rounds) else i * each + each  # the last round may have more
        collected, model, reward, clone = (done.get(s, {}) for s in ("collect", "world-model", "reward", "clone"))
        dreamt = [row["imagined_success"] for row in run.metrics["improve"] if i * each < row["iteration"] <= after]
        seconds = [done[stage]["seconds"] for stage in REPEATED if stage in done]
        rows.append(
            [
                f"{i + 1}",
                f"{collected.get('episodes', page.MISSING)}",
                percent(collected.get("success")),
                number(model.get("ratio_last"), 2, "×"),
                number(reward.get("real", {}).get("f1"), 2),
                number(reward.get("imagined", {}).get("j"), 2),
                f"{clone.get('successes', page.MISSING)}",
                " → ".join(percent(value) for value in (dreamt[0], dreamt[-1])) if dreamt else page.MISSING,
                duration(sum(seconds)) if seconds else page.MISSING,
            ]
        )
    lead = (
        "A round collects real episodes with the policy as it is, goes on training the world model with them, trains "
        "the classifier anew, clones what was really solved so far and lets the policy practise. So the dream is "
        "learned again where the policy now goes."
    )
    note = "Success is that of the policy with which the round begins. Replays, F1 and J are of held-out episodes."
    head = [
        "round",
        "episodes",
        "solved",
        "replays, to tokenizer",
        "F1, real",
        "J, replays",
        "cloned",
        "imagined success",
        "time",
    ]
    return f"<p class=lead>{lead}</p>" + table(head, rows, note)


def _dream(run: Run) -> str:
    checks = [row for row in run.metrics["world-model"] if row.get("distance")]
    model = run.results.get("world_model") or (checks[-1] if checks else {})
    distance, floor = model.get("distance"), model.get("tokenizer_distance")
    unfinished = "" if "world-model" in run.stages else _missing(run, "world-model")
    if not distance:
        return unfinished
    ratio = model.get("ratio_last") or (distance[-1] / floor if floor else None)
    lead = (
        "Real actions of held-out episodes are replayed in the world model from the first frame on, without ever "
        "looking back at the real video. Distances are mean absolute differences of pixels between −1 and 1."
    )
    facts = [
        (f"after {len(distance)} chunks", number(distance[-1], 3), "imagined to real frame"),
        ("tokenizer alone", number(floor, 3), "what encoding a frame already costs"),
        ("ratio", number(ratio, 2, "×"), "1 is as good as its tokenizer"),
    ]
    stopped = f"<p class=note>Why its training ended: {esc(model['stopped'])}.</p>" if model.get("stopped") else ""
    curves = plots.distance_by_chunk(distance, floor) + plots.distance_in_training(checks)
    dreams = page.videos(run.path / "videos", run.shown("imagined"))
    return (
        f"<p class=lead>{lead}</p>{unfinished}{tiles(facts)}<div class=two>{curves}</div>{stopped}{_replays(run)}"
        f"{_belief(run)}" + (f"<h3>Episodes that happened only in the dream</h3>{dreams}" if dreams else "")
    )


def _replays(run: Run) -> str:
    picture, pairs = run.path / "videos" / "strip.png", page.videos(run.path / "videos", run.shown("replay"), HALVES)
    strip = ""
    if picture.is_file():
        image = f"<img src='{page.embed(picture, 'image/png')}' alt='real over imagined frames of the same actions'>"
        strip = f"<h3>The same actions, real and imagined</h3><div class=strip tabindex=0>{image}</div>"
    return strip + pairs


def _collected(run: Run) -> float | None:
    """Real success of the base policy at the temperature of imagination: that of the first round's episodes."""
    return run.rounds[0].get("collect", {}).get("success") if run.rounds else None


def _belief(run: Run) -> str:
    """What imagination thinks of both policies, against what they really do."""
    imagined = run.results.get("imagined")
    if not imagined:
        return ""
    collected = _collected(run)
    audited = [a["real"] for a in run.audits if a["iteration"] == run.part("kept_iteration", "improve")]
    improved = collected if run.results.get("handed_in") == "base" else audited[-1] if audited else None
    rows = []
    for name, real in (("base", collected), ("improved", improved)):
        off = signed((imagined[name] - real) * 100) if real is not None else "–"
        rows.append([f"{name} policy", percent(imagined[name]), percent(real), off])
    note = (
        "Actions sampled as in training. Real success is that of the collected episodes and of the last audit. The "
        "improved policy was trained to succeed in the dream, so there its figure may flatter."
    )
    return "<h3>What the dream believes</h3>" + table(
        ["", "imagined success", "real success", "too high by, points"], rows, note
    )


def _reward(run: Run) -> str:
    reward = run.results.get("reward") or run.stages.get("reward", {})
    if "real" not in reward:
        return (
            _missing(run, "reward")
            if "reward" not in run.stages
            else "<p class=empty>Its figures come with evaluate.</p>"
        )
    rows = []
    for name, label in (("real", "real videos"), ("imagined", "imagined replays")):
        rates: Mapping[str, Any] = reward.get(name) or {}
        figures = [
            cell(number(rates.get(key), 2), between(rates.get(f"{key}_interval"), digits=2))
            for key in ("tpr", "fpr", "j", "f1")
        ]
        rows.append([label, *figures, f"{rates.get('n', '–')}<small>{rates.get('positives', '–')} solved</small>"])
    lead = (
        "In the dream nobody knows whether the task is solved: a classifier watches the last frames and says so. These "
        "are its errors on held-out episodes, on the real videos and on the world model's replays of the same actions."
    )
    note = f"Threshold {number(reward.get('threshold'), 3)}, saved with the weights. J = TPR − FPR."
    if reward.get("on_policy"):
        note += " With it the policy that was collected with solves as many episodes in the dream as it really did."
    head = ["", "finds success (TPR)", "false alarms (FPR)", "J", "F1", "episodes"]
    curves = plots.roc(reward) + plots.reliability(reward)
    return f"<p class=lead>{lead}</p>{table(head, rows, note)}" + (f"<div class=two>{curves}</div>" if curves else "")


def _before_after(run: Run) -> str:
    shown = page.videos(run.path / "videos", run.shown("before-after"))
    if not shown:
        return "<p class=empty>No videos were kept.</p>" if "evaluate" in run.stages else _missing(run, "evaluate")
    return f"<p class=lead>Real episodes of test starts, by the base and by the improved policy.</p>{shown}"


def _time(run: Run) -> str:
    if not run.seconds:
        return _missing(run, "demos")
    speed = run.results.get("throughput") or {}
    facts = [
        ("imagined", number(speed.get("imagined_steps_per_second"), 0), "environment steps per second"),
        ("simulated", number(speed.get("real_steps_per_second"), 0), "environment steps per second"),
        ("world model", number(speed.get("world_model_frames_per_second"), 0), "frames per second, by itself"),
    ]
    share = f"<h3>Where a second of imagination goes</h3>{page.share_bar(speed['share'])}" if speed.get("share") else ""
    side = f"<div>{tiles(facts)}{share}</div>" if speed else ""
    lead = f"Finished stages took {duration(sum(run.seconds.values()))} together."
    return f"<p class=lead>{lead}</p><div class=two>{plots.stage_times(run.seconds)}{side}</div>"


def _ledger(run: Run) -> str:
    if not run.episodes:
        return _missing(run, "demos")
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in run.episodes:
        groups[row["purpose"]].append(row)
    order = [*PURPOSES, *sorted(set(groups) - set(PURPOSES))]
    rows = []
    for purpose, episodes in [(p, groups[p]) for p in order if p in groups] + [("total", run.episodes)]:
        solved, steps = sum(bool(row["success"]) for row in episodes), sum(row["steps"] for row in episodes)
        what = f"<small>{PURPOSES[purpose]}</small>" if purpose in PURPOSES else ""
        rows.append(
            [f"{esc(purpose)}{what}", number(len(episodes), 0), percent(solved / len(episodes)), number(steps, 0)]
        )
    again = f"{run.played_again} more were identical repetitions after an interruption." if run.played_again else ""
    lead = "Every episode played in the real environment, written down by the environment itself."
    return f"<p class=lead>{lead}</p>" + table(["purpose", "episodes", "solved", "steps"], rows, again)


def _config(run: Run) -> str:
    if not run.config:
        return _missing(run, "demos")
    rows = [[key, f"<code>{esc(run.config[key])}</code>"] for key in ABOUT if key in run.config]
    leaves = [[esc(name), f"<code>{esc(value)}</code>"] for name, value in run.settings()]
    every = page.details(f"All {len(leaves)} settings", table(["setting", "value"], leaves))
    return f"<div class=settings>{table(['', ''], rows)}{every}</div>"

"""The report's section on ``wmpo fidelity``: pictures, outcomes, policies and signs of hallucination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wmpo.report import page, plots
from wmpo.report.page import between, cell, esc, number, percent, signed, table
from wmpo.report.reading import Run

METRICS = {
    "distance": ("pixel distance", 3),
    "psnr": ("PSNR, dB", 1),
    "ssim": ("SSIM", 3),
    "feature_distance": ("feature distance", 3),
    "flow_error": ("motion error, pixels", 2),
    "hand_error": ("robot off by, actions", 2),
}
SIGNS = {
    "round_trip": "changes when encoded and decoded once more",
    "instability": "differs when the flow takes twice as many steps",
    "variance": "differs in a second dream, under other noise and in finer steps",
    "combined": "the last two together",
    "chunk": "how late in the episode it is, for comparison: errors add up anyway",
}


def section(run: Run) -> str:
    found = run.fidelity
    return "".join(part(found) for part in (_pictures, _outcomes, _policies, _signs)) + _worst(run)


def _pictures(found: Mapping[str, Any]) -> str:
    """First and last chunk for each round's world model, and what the tokenizer alone would show."""
    shown = [(f"round {i}", measured["imagined"]) for i, measured in enumerate(found["rounds"], start=1)]
    shown.append(("tokenizer alone", found["rounds"][-1]["tokenizer"]))
    metrics = {key: value for key, value in METRICS.items() if key in shown[-1][1]}  # older files have fewer
    rows = [
        [name]
        + [" → ".join(number(measured[key][end], digits) for end in (0, -1)) for key, (_, digits) in metrics.items()]
        + [" → ".join(str(measured["num_episodes"][end]) for end in (0, -1))]
        for name, measured in shown
    ]
    lead = (
        "Real actions of held-out episodes of all rounds, replayed in each round's world model: first → last chunk. "
        "The motion error says how many pixels imagined things move otherwise than real ones, where something moves; "
        "the last column how far the imagined robot is from the real one (1: as far as one full action moves it), as a "
        "small network reads it off the pictures."
    )
    head = ["world model of", *(title for title, _ in metrics.values()), "episodes that last so long"]
    return f"<p class=lead>{lead}</p>" + table(head, rows)


def _outcomes(found: Mapping[str, Any]) -> str:
    rows = []
    for i, measured in enumerate(found["rounds"], start=1):
        cells, over = measured["outcomes"], measured["over_optimism"]
        counts = [str(cells[key]) for key in ("both", "only_real", "only_imagined", "none")]
        much = cell(signed(over["points"]), between(over["interval"], sign=True))
        j = cell(number(measured["rates"]["j"], 2), between(measured["rates"].get("j_interval"), digits=2))
        rows.append([f"round {i}", *counts, j, much])
    head = [
        "dream of",
        "solved in both",
        "only really",
        "only in the dream",
        "in neither",
        "J",
        "too optimistic, points",
    ]
    return "<h3>Outcomes of these replays</h3>" + table(head, rows)


def _policies(found: Mapping[str, Any]) -> str:
    """Real against imagined success; a point for each policy and decoding."""
    if not found["policies"]:
        return "<p class=empty>Policies could not be played, as this run has no simulator.</p>"
    points = [(_rate(p["real"]), _rate(p["imagined"])) for p in found["policies"]]
    rows = [
        [f"{esc(p['policy'])}<small>{esc(p['decoding'])}</small>", percent(real), percent(imagined)]
        for p, (real, imagined) in zip(found["policies"], points, strict=True)
    ]
    over = found["over_optimism"]
    if not isinstance(over, Mapping):  # older files have no interval
        over = {"points": 100 * over, "interval": None}
    calibrated = found.get("calibrated")
    if isinstance(calibrated, Mapping):
        less = (
            f", {signed(calibrated['points'])} ({between(calibrated['interval'], sign=True)}) less what it was for the "
            "policies that played the P episodes"
        )
    else:
        less = ""
    note = (
        f"Over all of them the dream is {signed(over['points'])} points too optimistic "
        f"({between(over['interval'], sign=True)}){less}. Correlation r = {number(found['pearson'])}; mean of the "
        f"largest real difference that the dream ranks wrongly: {number(100 * found['mmrv'], 1)} points."
    )
    n = len(found["policies"][0]["real"])
    lead = f"Every round's policy plays {n} validation starts, really and in the last dream."
    plot = plots.agreement(points)
    both = f"<div class=two><div>{table(['policy', 'real', 'imagined'], rows)}</div>{plot}</div>"
    return f"<h3>Does the dream rank policies rightly?</h3><p class=lead>{lead}</p>{both}<p class=note>{note}</p>"


def _rate(outcomes: Sequence[bool]) -> float:
    return sum(outcomes) / len(outcomes)


def _signs(found: Mapping[str, Any]) -> str:
    signs = found["signs"]
    rows = [
        [
            f"{name.replace('_', ' ')}<small>{text}</small>",
            number(signs["areas"][name]),
            number(signs["areas"].get(f"{name}_by_motion")),
        ]
        for name, text in SIGNS.items()
        if name in signs["areas"]  # older files have fewer
    ]
    lead = (
        f"In {percent(signs['left_reality'])} of {signs['num_chunks']} imagined chunks the picture had left reality. "
        "Signs that need no real video, and the chance that such a chunk shows more of it than another (AUROC; 0.5 is "
        "a coin toss)."
    )
    return (
        "<h3>Signs of hallucination</h3>"
        + f"<p class=lead>{lead}</p>"
        + table(["sign", "AUROC", "divided by motion"], rows)
    )


def _worst(run: Run) -> str:
    halves = "<div class=halves><span class=is-real>real</span><span class=is-dream>imagined</span></div>"
    shown = page.videos(run.path / "videos", run.fidelity["signs"]["videos"], halves)
    return f"<h3>The worst replays</h3>{shown}" if shown else ""

"""The report's section on ``wmpo disruptions``: success under each, self-correction, and recovery from a push."""

from __future__ import annotations

from typing import Any

from wmpo.report import page
from wmpo.report.page import between, cell, esc, number, percent, signed, table
from wmpo.report.reading import Run

HALVES = "<div class=halves><span>base</span><span>improved</span></div>"


def section(run: Run) -> str:
    found = run.disruptions
    return (
        _disruptions(found) + _lengths(found) + _push(found, page.videos(run.path / "videos", found["videos"], HALVES))
    )


def _disruptions(found: dict[str, Any]) -> str:
    rows = [
        [
            esc(row["words"]),
            *(_rate(row[name]) for name in ("base", "improved")),
            cell(signed(row["difference"]["points"]), between(row["difference"]["interval"], sign=True)),
            str(row["base"]["n"]),
        ]
        for row in found["disruptions"]
    ]
    decodings = " and ".join(esc(found["disruptions"][0][name]["decoding"]) for name in ("base", "improved"))
    same = " The base policy was handed in, so both are the same policy." if found["handed_in"] == "base" else ""
    lead = (
        "Both policies play the same validation starts in the real environment, each start undisturbed and under each "
        f"disruption, at the decodings that evaluate chose ({decodings}).{same} Nothing was trained on these starts, "
        "and no policy has ever seen a disruption."
    )
    note = "Small figures are 95\u202f% intervals: Wilson's for success, the paired one for the difference."
    return f"<p class=lead>{lead}</p>" + table(
        ["disruption", "base", "improved", "difference, points", "starts"], rows, note
    )


def _rate(record: dict[str, Any]) -> str:
    return cell(percent(record["success"]), between(record["interval"], 100))


def _lengths(found: dict[str, Any]) -> str:
    lengths = found["lengths"]
    title = "<h3>Self-correction</h3>"
    if not lengths["n"]:
        return f"{title}<p class=empty>There is no start that both policies solve undisturbed.</p>"
    change, interval = lengths["difference"]["steps"], lengths["difference"]["interval"]
    text = (
        f"From the {lengths['n']} undisturbed starts that both policies solve, the base policy needs "
        f"{number(lengths['base'], 1)} steps on average and the improved one {number(lengths['improved'], 1)}: "
        f"{signed(change)} steps ({between(interval, sign=True)}). Whoever loses less time with slips needs fewer."
    )
    return f"{title}<p class=lead>{text}</p>"


def _push(found: dict[str, Any], videos: str) -> str:
    push = found["push"]
    rows = [
        [
            name,
            _rate(push[name]),
            percent(push[name]["without_push"]),
            str(push[name]["n"]),
        ]
        for name in ("base", "improved")
    ]
    gain = push["difference"]
    lead = (
        f"After {push['step']} steps the hand is displaced by {number(push['centimetres'], 1)} cm along the table, in "
        "a direction drawn for each start. Episodes that were solved before that are not counted."
    )
    note = (
        f"From the {gain['n']} starts where both were pushed: {signed(gain['points'])} points "
        f"({between(gain['interval'], sign=True)}). Without a push: success from the same starts."
    )
    body = table(["policy", "success after the push", "without a push", "pushed"], rows, note)
    return f"<h3>Recovery from a push</h3><p class=lead>{lead}</p>{body}{videos}"

"""The look and the words of the report: style sheet, HTML pieces, figures as text, and the verdict in plain words."""

from __future__ import annotations

import base64
import html
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wmpo.report.style import CSS, PLAY

MISSING = "–"


def esc(value: object) -> str:
    """Text of a run (instructions, names, config) is never markup."""
    return html.escape(str(value))


def number(value: Any, digits: int = 2, unit: str = "") -> str:
    """A figure with a real minus sign; a dash where there is none."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return MISSING
    return f"{value:,.{digits}f}{unit}".replace("-", "−").replace(",", "\u202f")


def percent(value: Any) -> str:
    return number(value * 100 if isinstance(value, int | float) else None, 1, "\u202f%")


def signed(value: Any, digits: int = 1) -> str:
    text = number(value, digits)
    return text if text[0] in "−–" else f"+{text}"


def between(pair: Any, scale: float = 1, digits: int = 1, sign: bool = False) -> str:
    """An interval in words: "−2.1 to +8.0"."""
    if not pair:
        return MISSING
    return " to\u00a0".join(signed(v * scale, digits) if sign else number(v * scale, digits) for v in pair)


def duration(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """Cells are HTML already. The first column names the row. A wide table scrolls inside itself on a phone."""
    cells = "".join(f"<th scope=col>{title}</th>" for title in head)
    body = "".join(f"<tr><th scope=row>{row[0]}</th>{''.join(f'<td>{c}</td>' for c in row[1:])}</tr>" for row in rows)
    caption = f"<p class=note>{note}</p>" if note else ""
    return f"<div class=scroll><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>{caption}"


def cell(figure: str, below: str) -> str:
    """A table's cell: a figure and, smaller, its interval."""
    return f"<b>{figure}</b><small>{below}</small>"


def tiles(pairs: Sequence[tuple[str, str, str]]) -> str:
    """Big figures with a name above and an explanation below."""
    shown = (f"<div class=tile><i>{name}</i><b>{value}</b><span>{note}</span></div>" for name, value, note in pairs)
    return f"<div class=tiles>{''.join(shown)}</div>"


def embed(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def videos(folder: Path, entries: Sequence[Mapping[str, str]], header: str = "") -> str:
    """Videos in a grid. ``header`` stands over each, e.g. to say which half is real."""
    shown = []
    for entry in entries:
        path = folder / entry["file"]
        if not path.is_file():
            shown.append(f"<figure class=video><figcaption>{esc(entry['file'])} is missing</figcaption></figure>")
            continue
        player = f'<video src="{embed(path, "video/mp4")}" controls loop muted playsinline preload=metadata></video>'
        shown.append(f"<figure class=video>{header}{player}<figcaption>{esc(entry['caption'])}</figcaption></figure>")
    return f"<div class={'pairs' if header else 'clips'}>{''.join(shown)}</div>" if shown else ""


def share_bar(shares: Mapping[str, float]) -> str:
    """Where the time of imagination goes: one bar, its parts in different strengths of a colour, and a legend."""
    total = sum(shares.values()) or 1.0
    parts, legend = "", ""
    for place, (name, value) in enumerate(sorted(shares.items(), key=lambda item: -item[1])):
        strength = f"opacity:{max(1 - 0.24 * place, 0.15):.2f}"
        parts += f'<span style="flex:{value / total:.4f};{strength}"></span>'
        label = f"{esc(name.replace('_', ' '))} {value / total:.0%}".replace("%", "\u202f%")
        legend += f'<li><span style="{strength}"></span>{label}</li>'
    return f"<div class=share>{parts}</div><ul class=legend>{legend}</ul>"


def details(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>{body}</details>"


def document(title: str, hero: str, sections: Sequence[tuple[str, str, str]], foot: str) -> str:
    """The whole page from (anchor, title, body) of each section."""
    links = "".join(f'<a href="#{anchor}">{anchor.capitalize()}</a>' for anchor, _, _ in sections)
    body = "".join(f'<section id="{anchor}"><h2>{name}</h2>{text}</section>' for anchor, name, text in sections)
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{esc(title)}</title>"
        "<meta name=viewport content='width=device-width,initial-scale=1'><meta name=color-scheme content='light dark'>"
        f"<style>{CSS}</style></head><body><header>{hero}</header><nav>{links}</nav><main>{body}</main>"
        f"<footer>{foot}</footer><script>{PLAY}</script></body></html>"
    )


def write(target: Path, text: str) -> Path:
    """Writes a page, which is whole or not there at all, and returns its path."""
    unfinished = target.with_name(f".{target.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, target)
    return target

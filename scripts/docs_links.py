"""For mkdocs: links to files outside of ``docs/`` work in the repository, and become plain names on the site."""

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+((?:benchmarks|dev|examples|src|tests)/[^)#]*|README\.md)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """``[what](../examples/file.py)`` -> ``what (`examples/file.py`)``, or only the name where both say the same."""
    return OUTSIDE.sub(lambda m: f"`{m[2]}`" if m[1].strip("`") == m[2] else f"{m[1]} (`{m[2]}`)", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name things as ``:class:`X` ``; the role is not text."""
    return re.sub(r":(?:class|mod|func|meth):(?=<code>)", "", html)

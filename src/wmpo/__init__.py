"""World-model-based policy optimisation: a robot policy improves in imagination (arXiv 2511.09515).

``wmpo --help`` lists the stages; :mod:`wmpo.recipes` holds whole experiments, :mod:`wmpo.protocols` the interfaces
between the parts, and ``docs/paper_map.md`` says where each step of the paper is.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wmpo.stages.deploy import LoadedPolicy

__version__ = version("wmpo")


def load_policy(path: str | Path) -> LoadedPolicy:
    """The policy of a run's folder or of a file of its ``models``: ``load_policy(path).act(image, instruction)``."""
    from wmpo.stages.deploy import load_policy as load  # not at import: ``import wmpo`` stays quick

    return load(path)

"""World-model-based policy optimisation: a robot policy improves in imagination (arXiv 2511.09515).

``wmpo --help`` lists the stages; :mod:`wmpo.recipes` holds whole experiments, :mod:`wmpo.protocols` the interfaces
between the parts, and ``docs/paper_map.md`` says where each step of the paper is.
"""

from importlib.metadata import version

__version__ = version("wmpo")

"""Damaged datasets: whatever is wrong with a file becomes one sentence that names it and says what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class DatasetError(ValueError):
    """The dataset is incomplete, damaged or of another kind; the message names the file and what to do."""


def require(fits: bool, path: Path, problem: str) -> None:
    """Raises DatasetError about ``path`` unless ``fits``."""
    if not fits:
        raise DatasetError(f"{path}: {problem}; copy, export or record the dataset again")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes its decoder raise becomes one sentence that names the file."""
    try:
        yield
    except DatasetError:
        raise
    except Exception as error:  # decoders of damaged bytes raise nearly anything
        problem = "missing" if isinstance(error, FileNotFoundError) else f"damaged or unusual ({error!r})"
        raise DatasetError(f"{path} is {problem}; copy, export or record the dataset again") from error


def choose_all(found: list[str], wanted: Sequence[str], what: str, path: Path, flag: str) -> tuple[str, ...]:
    """The wanted names in their order, or the only one there is. Raises DatasetError as :func:`choose`, and for a name
    that comes twice."""
    chosen = tuple(choose(found, name, what, path, flag) for name in wanted or (None,))
    if len(set(chosen)) < len(chosen):
        raise DatasetError(f"{path}: {flag} {' '.join(wanted)} names one of the {what} twice; name each once")
    return chosen


def choose(found: list[str], wanted: str | None, what: str, path: Path, flag: str) -> str:
    """The wanted name, or the only one there is. Raises DatasetError that lists the names and the flag to use."""
    chosen = [name for name in found if wanted in (name, None)]
    if len(chosen) != 1:
        fix = f"choose one with {flag}" + (f", not {wanted!r}" if wanted is not None else "")
        raise DatasetError(f"{path} has the {what} {sorted(found)}; {fix}")
    return chosen[0]

"""Lists of plain words that invented names, cities and the like are made of. Files beside this one; pure.

A list never changes under its version: what it made of a value last year, it makes today.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

WORDS_VERSION = 1


@cache
def words(kind: str) -> tuple[str, ...]:
    """Return the list *kind*, such as ``cities``, in the order of its file."""
    text = resources.files(__name__).joinpath(f"{kind}.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())

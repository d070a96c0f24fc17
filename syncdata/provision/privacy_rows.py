"""Rows of a table before and after the masks, in words: for a terminal at production alone."""

from __future__ import annotations

from msgspec import UNSET

from syncdata.capture.trial import Sample, Value


def format_sample(sample: Sample) -> str:
    """Return a sample as lines of text: each row as it is, and below it what of it travels."""
    lines = [f"{sample.table}"]
    for before, after in zip(sample.before, sample.after, strict=True):
        for name, old, new in zip(sample.columns, before, after, strict=True):
            arrow = "(withheld)" if new is UNSET else "(as it is)" if new == old else f"-> {_shown(new)}"
            lines.append(f"  {name}: {_shown(old)} {arrow}")
        lines.append("")
    return "\n".join(lines if sample.before else [*lines, "  no rows"])


def _shown(value: Value) -> str:
    """Return a value for a terminal, which must not take it for a command."""
    return "NULL" if value is None else ascii(value) if not str(value).isprintable() else f"'{value}'"

"""A command of ours that kills itself at a step: `deadly.py daemon|archiver STEP PASSAGE command ...`.

Each step of the daemon is a call of a library that it cannot do without, so that the steps stay what they are
however the code above is cut. The archiver's are those of `tests.archiver_runner`. Without a step it lives.
The file SOAK_CLOCK says by how many seconds the wall clock is wrong; locks of others are waited for only
briefly. With the variable SOAK_VERIFIES, all rows are verified all the time, in small chunks.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

LOCK_LIMIT_S = 1.0
# Of more rows without a key, only the number is compared.
CHUNK_ROWS, KEYLESS_ROWS = 80, 400
Right = datetime.datetime
# Each step: the class, in its module, whose method takes it, and whether we die before it or after it.
DAEMON_STEPS: dict[str, tuple[str, str, str, str]] = {
    "before a statement": ("psycopg", "Cursor", "execute", "before"),
    "after a statement": ("psycopg", "Cursor", "execute", "after"),
    "before a COPY": ("psycopg", "Cursor", "copy", "before"),
    "rows are copied": ("psycopg", "Copy", "__exit__", "after"),
    "before a block ends": ("psycopg", "Transaction", "__exit__", "before"),
    "a block has ended": ("psycopg", "Transaction", "__exit__", "after"),
    "before a file is opened": ("paramiko", "SFTPClient", "open", "before"),
    "a file is opened": ("paramiko", "SFTPClient", "open", "after"),
}


def main() -> None:
    side, step, passage, *command = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    sys.argv = ["manage.py", *command]
    _set_clock(Path(os.environ["SOAK_CLOCK"]))
    for module in ("syncdata.apply.sink", "syncdata.apply.cycle"):
        import_module(module).LOCK_LIMIT_S = LOCK_LIMIT_S  # type: ignore[attr-defined]
    if "SOAK_VERIFIES" in os.environ:
        _verify_all_the_time(side)
    if side == "archiver" and step:
        from tests.archiver_runner import die_at

        die_at(step, int(passage))
    elif step:
        _die_at(step, int(passage))

    from manage import main as manage

    manage()


def _set_clock(wrong_by: Path) -> None:
    """Let whoever asks `datetime.now` be told a time that is wrong by the seconds in the file *wrong_by*."""

    class Clock(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, Right)

    class Wrong(Right, metaclass=Clock):
        def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
            return Right(*arguments, **keywords)

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return Right.now(tz) + datetime.timedelta(seconds=float(wrong_by.read_text()))

    # It has a struct of datetimes, which is read with the right class only.
    import_module("syncdata.predecessor.statefile")
    datetime.datetime = Wrong  # type: ignore[misc]


def _verify_all_the_time(side: str) -> None:
    """Let rounds begin soon after a start, in small chunks; and hardly a check be passed over for want of
    time. All of the time would keep tables that are behind from catching up."""
    if side == "daemon":
        import_module("syncdata.apply.verifying").Budget.SHARE = 0.4
        return
    verifier: Any = import_module("syncdata.capture.verifier")
    verifier.SETTLE_S, verifier.MOST_ROWS = 0.2, CHUNK_ROWS
    reads: Any = import_module("syncdata.capture.verify_reads").Reads
    has_more_than = reads.has_more_than
    reads.has_more_than = lambda read, _: has_more_than(read, KEYLESS_ROWS)


def _die_at(step: str, passage: int) -> None:
    from tests.archiver_runner import _Countdown

    module, owner_name, name, moment = DAEMON_STEPS[step]
    owner, countdown = getattr(import_module(module), owner_name), _Countdown(passage)
    original: Callable[..., Any] = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if moment == "before":
            countdown.pass_by()
        result = original(*args, **kwargs)
        if moment == "after":
            countdown.pass_by()
        return result

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    main()

"""A daemon, or one cycle of it, that dies where it is told to: `dying_daemon.py STEP PASSAGE ARGUMENT…` is
``manage.py ARGUMENT…`` that kills itself at the so manieth time that one of its threads comes to the step.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from django.core.management import execute_from_command_line


def steps() -> dict[str, tuple[Any, str, str]]:
    """Return for each step the function that takes it, and whether we die before it or after it."""
    from syncdata.apply import bootstrap, resync
    from syncdata.apply.postgres import shadow
    from syncdata.apply.postgres.shadow import ShadowTarget
    from syncdata.apply.state import queue

    return {
        "a table is made beside": (ShadowTarget, "__init__", "after"),
        "some of the rows are there": (ShadowTarget, "apply", "after"),
        "before the indexes": (ShadowTarget, "accept", "before"),
        "the snapshot of a new table is loaded": (bootstrap, "load_newest", "after"),
        "the snapshot of an old table is loaded": (resync, "load_newest", "after"),
        "before the exchange": (ShadowTarget, "exchange", "before"),
        "the rows are exchanged": (shadow, "exchange", "after"),
        "before the exchange commits": (shadow, "log_action", "after"),
        "the exchange is committed": (ShadowTarget, "exchange", "after"),
        "before the request is done": (queue, "finish", "before"),
        "the request is done": (queue, "finish", "after"),
    }


def die_at(step: str, passage: int) -> None:
    owner, name, moment = steps()[step]
    original = getattr(owner, name)
    lock, left = threading.Lock(), [passage]

    def pass_by() -> None:
        with lock:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def deadly(*args: Any, **kwargs: Any) -> Any:
        if moment == "before":
            pass_by()
        result = original(*args, **kwargs)
        if moment == "after":
            pass_by()
        return result

    setattr(owner, name, deadly)


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "syncsite.settings")
    sys.path[0] = str(Path(__file__).parents[1])
    import django

    django.setup()
    die_at(sys.argv[1], int(sys.argv[2]))
    execute_from_command_line(["manage.py", *sys.argv[3:]])

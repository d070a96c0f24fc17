"""A short run of `tests.fuzz`. A long one is started by hand: ``python -m tests.fuzz --cases 5000000``."""

from __future__ import annotations

import os

from tests import processes


def test_made_up_input_is_read_or_refused_and_nothing_else() -> None:
    done = processes.run("-m", "tests.fuzz", "--cases", "20000", "--seed", "1", env=os.environ, is_cold=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20,000 cases" in done.stdout

"""Settings of the whole process that pay where tens of thousands of records pass through a second."""

from __future__ import annotations

import gc
import sys


def tune_interpreter() -> None:
    """Two settings, each worth a fifth of the speed (see benchmarks/apply.py).

    A batch is tens of thousands of records without a cycle among them, so garbage is looked for rarely.
    And the thread that feeds the server gets its turn at once when the one that prepares has it.
    """
    sys.setswitchinterval(0.000_1)
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)

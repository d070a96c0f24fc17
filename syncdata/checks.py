"""System checks. Read configuration only; connect to nothing."""

from __future__ import annotations

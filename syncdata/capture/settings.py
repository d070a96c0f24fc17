"""The settings of capture: the source, the slot, the spool, and when a file ends. Knows no configuration file
and no Django: production.py fills them in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from syncdata.archive.signatures import Signer
from syncdata.changes.filenames import Compression
from syncdata.privacy.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureSettings:
    """``params`` are psycopg's, for the source. A change file ends at the first commit after it has been open
    for ``rotate_s`` seconds, or has ``rotate_bytes`` of text (before compression). Tables of up to
    ``snapshot_bytes`` are copied by the archiver itself when their rows changed without a record. ``signer``,
    where there is one, signs what goes to the archive. ``policy``: what of the published tables may leave,
    and how; without one all of it does, as it is. ``verify_rows_per_s`` are read for checks (0: none), a
    round of all tables every ``verify_days``."""

    params: Mapping[str, Any] = field(repr=False)
    slot_name: str
    publication: str
    spool_dir: Path
    rotate_s: float = 60.0
    rotate_bytes: int = 64 * 1024 * 1024
    compression: Compression = "zstd"
    snapshot_bytes: int = 1 << 30
    signer: Signer | None = None
    policy: Policy | None = None
    verify_rows_per_s: int = 0
    verify_days: float = 1.0

"""The archiver's sign of life in the archive, ``head.json``. Knows what is in it, and in which order things
reach the archive; when it is due, the session knows."""

from __future__ import annotations

import datetime as dt

from syncdata.archive.archive import Archive
from syncdata.capture.chain import Chain, format_moment
from syncdata.capture.settings import CaptureSettings
from syncdata.capture.uploader import put_catalogs
from syncdata.changes.head import Head, encode_head

_LEAST_EVERY_S, _MOST_EVERY_S = 1.0, 60.0


def head_interval_s(rotate_s: float) -> float:
    """Return the seconds between two heads: a rotation, but never more than a minute."""
    return min(max(rotate_s, _LEAST_EVERY_S), _MOST_EVERY_S)


def make_head(
    chain: Chain,
    *,
    now: dt.datetime,
    rotate_s: float,
    catalog: str | None,
    state: str = "running",
    error_code: str | None = None,
) -> Head:
    """Return the head for *chain*, whose last file is in the archive. *catalog* holds behind that file."""
    return Head(
        version=1,
        time=format_moment(now),
        every_s=head_interval_s(rotate_s),
        confirmed_lsn=chain.confirmed_lsn,
        newest_file=chain.last_file,
        catalog=catalog,
        state=state,
        error_code=error_code,
        system_id=chain.system_id,
        timeline=chain.timeline,
        epoch=chain.epoch,
    )


def write_head(archive: Archive, settings: CaptureSettings, head: Head) -> None:
    """Replace the archive's head; the catalog that it names goes first. Raises as the archive does."""
    put_catalogs(archive, settings.spool_dir)
    archive.write_head(encode_head(settings.signer.sign_head(head) if settings.signer else head))

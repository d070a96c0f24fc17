"""Opens a chain: proves that slot, spool and archive continue it without a hole, or begins a new one.

Knows in which order to look, so that nothing moves between two looks; the rules themselves are chain.py's.
Reads the source over a connection that is open already; reads no changes.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from syncdata.archive.archive import Archive
from syncdata.capture.chain import (
    Chain,
    continue_chain,
    follow_failover,
    from_archive,
    load_chain,
    new_epoch,
    require_same_archive,
    require_same_slot,
    require_same_system,
    save_chain,
)
from syncdata.capture.refusals import NEW_EPOCH_HINT, SlotInUseError
from syncdata.capture.replication import ReplicationConnection
from syncdata.capture.settings import CaptureSettings
from syncdata.capture.slot import PLUGIN, Slot, read_slot
from syncdata.capture.source import SystemIdentity, connect
from syncdata.capture.spool import SpooledFile, make_spool, remove_from_spool, take_over
from syncdata.capture.uploader import upload
from syncdata.changes.filenames import is_ahead
from syncdata.changes.position import parse_lsn
from syncdata.changes.reader import inspect
from syncdata.errors import SlotError, SourceChangedError, SourceConnectionError

logger = logging.getLogger(__name__)


def open_chain(
    settings: CaptureSettings,
    replication: ReplicationConnection,
    archive: Archive,
    identity: SystemIdentity,
    now: dt.datetime,
) -> tuple[Chain, list[SpooledFile]]:
    """Return the chain, begun if this is the first time, and the files that wait in the spool.

    Raises SourceChangedError, SlotError or SpoolError when the chain cannot be continued without a hole, and
    SlotInUseError while another session reads the slot.
    """
    directory = settings.spool_dir
    require_primary(identity)
    make_spool(directory)
    chain = load_chain(directory)
    failed_over_from = None if chain is None or chain.timeline == identity.timeline else chain.timeline
    if chain is not None:
        if failed_over_from is not None:
            chain = _follow_failover(chain, identity, archive, take_over(directory))
        require_same_system(chain, identity)
        chain = chain.with_history(identity.switches)
    with _told_as_failover(failed_over_from, identity):
        slot = find_slot(replication, settings.slot_name, chain)
        if chain is not None:
            require_same_slot(chain, slot)
    # After the chain's own rules: of a slot that was moved and is in use, report that it was moved.
    require_free(slot)
    spooled = take_over(directory)
    newest_file = _newest_file(archive, chain.last_file if chain else None)
    if chain is None:
        chain = _begin_chain(archive, identity, slot, newest_file, now)
        chain = _follow_failover(chain, identity, archive, spooled)
        require_same_system(chain, identity)
        chain = chain.with_history(identity.switches)
        require_same_slot(chain, slot)
    require_same_archive(chain, newest_file, spooled)
    save_chain(directory, chain)
    if failed_over_from is not None:
        logger.warning(
            "the source has failed over from timeline %d to %d; nothing is missing, and the chain goes on",
            failed_over_from,
            chain.timeline,
        )
    return chain, spooled


def require_primary(identity: SystemIdentity) -> None:
    """Raise SourceConnectionError, which is waited for, while the server is a standby: it may be promoted."""
    if identity.is_standby:
        raise SourceConnectionError(
            "the source is a standby, which hands over no changes",
            hint="set source.pg_host to the primary; if this one is about to take over, the archiver goes on"
            " by itself when it has",
        )


@contextmanager
def _told_as_failover(from_timeline: int | None, identity: SystemIdentity) -> Iterator[None]:
    """Say of a slot that does not continue the chain that this is due to the failover, if there was one."""
    try:
        yield
    except SlotError as error:
        if from_timeline is None:
            raise
        raise SourceChangedError(
            f"the source has failed over from timeline {from_timeline} to {identity.timeline}, and there"
            f" {error.message}",
            hint=error.hint,
        ) from error


def _follow_failover(
    chain: Chain, identity: SystemIdentity, archive: Archive, spooled: list[SpooledFile]
) -> Chain:
    """Return the chain on the source's timeline. Raises SourceChangedError when something may be missing.

    Files that wait in the spool will be archived, and snapshots are archived already: what they show must
    have happened before the timelines parted, too.
    """
    if chain.timeline == identity.timeline:
        return chain
    ends = [chain.archived_lsn, *(parse_lsn(file.footer.end_lsn or "0/0") for file in spooled)]
    # Test: test_a_snapshot_of_what_the_new_primary_lacks_ends_the_epoch.
    ends.append(_newest_snapshot_lsn(archive, chain))
    return follow_failover(chain, identity, max(ends))


def _newest_snapshot_lsn(archive: Archive, chain: Chain) -> int:
    """Return where the newest snapshot of the chain was taken, 0 when there is none.

    Snapshots taken together share a stamp and a position, so one file of the newest stamp tells.
    """
    by_size = sorted(archive.discover_snapshots(), key=lambda file: file.size_bytes)
    for file in sorted(by_size, key=lambda file: file.stamp, reverse=True):
        with archive.fetch(file) as stream:
            header = inspect(stream, file.name).header
        if header is not None and header.source_id == chain.source_id and header.commit_lsn:
            # The next WAL record begins there: see ConsistentSource.begin.
            return parse_lsn(header.commit_lsn) + 1
    return 0


def begin_epoch(
    settings: CaptureSettings, archive: Archive, identity: SystemIdentity, slot: Slot, now: dt.datetime
) -> Chain:
    """Let the chain begin anew where *slot* stands; upload first what waits in the spool."""
    directory = settings.spool_dir
    chain = load_chain(directory)
    spooled = take_over(directory)
    if chain is not None:
        for file in continue_chain(chain, spooled)[1]:
            upload(archive, file)
            chain = chain.followed_by(file)
        save_chain(directory, chain)
    for file in spooled:
        remove_from_spool(file)
    # The new epoch is saved only now: files of the epoch before would not follow it.
    chain = new_epoch(identity, slot, _of_the_past(_newest_file(archive, None), now), now)
    save_chain(directory, chain)
    return chain


def find_slot(replication: ReplicationConnection, name: str, chain: Chain | None) -> Slot:
    """Return the slot called *name*. Raises SlotError when it does not exist, or has another plugin."""
    slot = replication.slot(name)
    if slot is None:
        hint = NEW_EPOCH_HINT if chain else "run 'python manage.py setup_logical_replication'"
        raise SlotError(f"the source has no replication slot {name}", hint=hint)
    if slot.plugin != PLUGIN:
        raise SlotError(
            f"the slot {name} is not of the plugin {PLUGIN}", hint="set slot_name to a name of our own"
        )
    return slot


def require_free(slot: Slot) -> None:
    """Raise SlotInUseError while a session reads *slot*: it may write another chain from it."""
    if slot.active_pid is not None:
        raise SlotInUseError(
            f"the slot {slot.name} is in use (process {slot.active_pid} of the source)",
            hint="stop the other reader; after a crash the server frees the slot by itself",
        )


def require_unmoved(settings: CaptureSettings, chain: Chain) -> None:
    """Look at the slot once more, now that we read it: until then, other sessions could move it."""
    with connect(settings.params) as connection:
        slot = read_slot(connection, settings.slot_name)
    if slot is not None:
        require_same_slot(chain, slot)


def _begin_chain(
    archive: Archive, identity: SystemIdentity, slot: Slot, newest_file: str | None, now: dt.datetime
) -> Chain:
    """Return the chain where the spool has no state of it.

    If the archive's newest file, say changes_20260205_103000.json.zst, is one of ours, the state was lost,
    and the file tells where the chain stands. Else a new epoch begins.
    """
    if newest_file is not None:
        (file,) = archive.discover(newest_file)[-1:]
        with archive.fetch(file) as stream:
            inspection = inspect(stream, file.name)
        if inspection.header is not None and inspection.footer is not None:
            return from_archive(inspection.header, inspection.footer, file.name, slot, now)
        if inspection.unfinished or inspection.error:
            raise SourceChangedError(
                "the archive's newest change file is not whole, so nothing tells how the chain goes on",
                hint="put a good copy in its place, or wait until it is written; else " + NEW_EPOCH_HINT,
                file=file.name,
            )
    return new_epoch(identity, slot, _of_the_past(newest_file, now), now)


def _newest_file(archive: Archive, since: str | None) -> str | None:
    files = archive.discover(since)
    return files[-1].name if files else None


def _of_the_past(newest_file: str | None, now: dt.datetime) -> str | None:
    """Return *newest_file*. Raises SourceChangedError when no name of now can come behind it."""
    if newest_file is not None and is_ahead(newest_file, now):
        raise SourceChangedError(
            "the time in the name of the archive's newest change file lies days ahead",
            hint="move it out of the archive, or rename it to the time when it was written; where the name is"
            " right, set this machine's clock",
            file=newest_file,
        )
    return newest_file

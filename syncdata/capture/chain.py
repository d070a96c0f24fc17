"""The chain of change files: where it stands, and the proof that the source still continues it.

Knows positions and identities; asks neither source nor archive, and touches no file but its own small one,
``chain.json``. The rules:

1. The chain's state is on the disk before the source is told that it may forget what the files hold. So
   the slot is never ahead of the state, unless somebody else moved or recreated it.
2. Transactions have one order, that of their commit LSNs. When ``last_commit_lsn`` is 0/16B3D50, a
   transaction that commits there or earlier is in the archive already, for whatever reason it is sent again.
3. Another system, timeline or slot cannot continue a chain. An operator may begin a new *epoch*, whose
   files say so; readers then stop, and begin again from a snapshot of that epoch.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import msgspec

from syncdata.capture.refusals import NEW_EPOCH_HINT
from syncdata.capture.slot import Slot
from syncdata.capture.source import SystemIdentity
from syncdata.capture.spool import SpooledFile, replace_in_spool, translated
from syncdata.changes.filenames import stem
from syncdata.changes.header import Footer, Header
from syncdata.changes.position import format_lsn, parse_lsn
from syncdata.errors import SlotError, SourceChangedError, SpoolError

CHAIN_FILE_NAME = "chain.json"


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the chain: its last file in the archive, and the position confirmed to the source.

    ``seq`` counts the epoch's files; ``last_file`` is the archive's newest one, of whatever epoch. All that
    was committed before ``confirmed_lsn`` is in the archive, or concerns no published table. LSNs are
    ``X/Y``, times RFC 3339 in UTC."""

    system_id: str
    timeline: int
    slot: str
    epoch: str
    seq: int = 0
    last_file: str | None = None
    last_commit_lsn: str | None = None
    confirmed_lsn: str
    confirmed_at: str = ""

    @property
    def watermark(self) -> int:
        """The last commit LSN in the chain; transactions up to it are in the chain. -1 when there is none."""
        return parse_lsn(self.last_commit_lsn) if self.last_commit_lsn else -1

    @property
    def confirmed(self) -> int:
        return parse_lsn(self.confirmed_lsn)

    @property
    def source_id(self) -> str:
        return self.header(dt.datetime.now(dt.UTC)).source_id

    def header(self, now: dt.datetime, *, start_lsn: int | None = None) -> Header:
        """Return the header of the file that would follow."""
        return Header(
            syncdata=1,
            system_id=self.system_id,
            timeline=self.timeline,
            slot=self.slot,
            epoch=self.epoch,
            seq=self.seq + 1,
            prev=self.last_file,
            start_lsn=None if start_lsn is None else format_lsn(start_lsn),
            created=format_moment(now),
        )

    def followed_by(self, file: SpooledFile) -> Chain:
        """Return the chain with *file* at its end; the confirmed position stays as it is."""
        return msgspec.structs.replace(
            self,
            seq=file.header.seq or 0,
            last_file=file.name,
            # A file that only announces a catalog has no commit.
            last_commit_lsn=file.footer.last_commit_lsn or self.last_commit_lsn,
        )

    def confirm(self, lsn: int, now: dt.datetime) -> Chain:
        """Return the chain with all before *lsn* confirmed; never less than before."""
        return msgspec.structs.replace(
            self,
            confirmed_lsn=format_lsn(max(self.confirmed, lsn)),
            confirmed_at=format_moment(now),
        )


def load_chain(directory: Path) -> Chain | None:
    """Return the chain's state, or None where there is none yet. Raises SpoolError when it is broken."""
    path = directory / CHAIN_FILE_NAME
    try:
        with translated(path):
            content = path.read_bytes()
    except SpoolError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    try:
        chain = msgspec.json.decode(content, type=Chain)
        chain.confirmed, chain.watermark  # noqa: B018  (they parse)
    except (msgspec.MsgspecError, ValueError) as error:
        raise SpoolError(
            "the state of the chain is broken",
            hint="remove it: the archiver then goes on from the archive's newest file if it can prove"
            " that nothing is missing, or says what to do",
            file=str(path),
        ) from error
    return chain


def save_chain(directory: Path, chain: Chain) -> None:
    """Write the chain's state; durable on return."""
    replace_in_spool(directory / CHAIN_FILE_NAME, msgspec.json.format(msgspec.json.encode(chain)) + b"\n")


def new_epoch(identity: SystemIdentity, slot: Slot, newest_file: str | None, now: dt.datetime) -> Chain:
    """Return a chain that begins where *slot* stands; its first file follows *newest_file*."""
    return Chain(
        system_id=identity.system_id,
        timeline=identity.timeline,
        slot=slot.name,
        # An epoch is named by a time, so no two share a name, even when the state of the older one is lost.
        epoch=f"{now.astimezone(dt.UTC):%Y%m%dT%H%M%S.%fZ}",
        last_file=newest_file,
        confirmed_lsn=format_lsn(slot.confirmed_lsn or 0),
        confirmed_at=format_moment(now),
    )


def from_archive(header: Header, footer: Footer, name: str, slot: Slot, now: dt.datetime) -> Chain:
    """Return the chain as the archive's newest file, called *name*, leaves it: its own state was lost.

    Raises SourceChangedError when the slot has moved beyond that file. We move it over changes of tables that
    are not published, another reader would move it over ours, and only the lost state could tell which.
    """
    end_lsn = parse_lsn(footer.end_lsn or "0/0")
    if (slot.confirmed_lsn or 0) > end_lsn:
        raise SourceChangedError(
            f"the state of the chain is lost, and the slot stands at {format_lsn(slot.confirmed_lsn or 0)},"
            f" beyond the archive's newest file, which ends at {format_lsn(end_lsn)}",
            hint="bring chain.json back into spool_dir if you have it; else " + NEW_EPOCH_HINT,
            file=name,
        )
    return Chain(
        system_id=str(header.system_id),
        timeline=header.timeline,
        slot=header.slot,
        epoch=str(header.epoch),
        seq=header.seq or 0,
        last_file=name,
        # A file that only announces a catalog has no commit, but all before its end is in the archive.
        last_commit_lsn=footer.last_commit_lsn or format_lsn(max(end_lsn - 1, 0)),
        confirmed_lsn=format_lsn(slot.confirmed_lsn or 0),
        confirmed_at=format_moment(now),
    )


def require_same_system(chain: Chain, identity: SystemIdentity) -> None:
    """Raise SourceChangedError unless *identity* is the system and timeline that *chain* was written from.

    A source that was restored from a copy gives out its WAL positions again: new commits would look like
    repeated ones, and be left out.
    """
    if chain.system_id != identity.system_id:
        raise SourceChangedError(
            f"the source is another system ({identity.system_id}) than the one archived so far"
            f" ({chain.system_id})",
            hint="point [source] at the right server; if it was replaced on purpose: " + NEW_EPOCH_HINT,
        )
    if chain.timeline != identity.timeline:
        raise SourceChangedError(
            f"the source is on timeline {identity.timeline}, the chain on {chain.timeline}: it was restored"
            " or failed over",
            hint=NEW_EPOCH_HINT,
        )
    if max(chain.confirmed, chain.watermark) > identity.wal_lsn:
        raise SourceChangedError(
            f"the source's WAL ends at {format_lsn(identity.wal_lsn)}, before what is archived"
            f" ({chain.confirmed_lsn}): it was restored from an older copy",
            hint=NEW_EPOCH_HINT,
        )


def require_slot_name(chain: Chain, name: str) -> None:
    """Raise SourceChangedError when the configured slot is another than the one *chain* was written from."""
    if chain.slot != name:
        raise SourceChangedError(
            f"slot_name is {name}, but the chain was written from {chain.slot}",
            hint="set slot_name back; if it was changed on purpose: " + NEW_EPOCH_HINT,
        )


def require_same_slot(chain: Chain, slot: Slot) -> None:
    """Raise SourceChangedError or SlotError unless *slot* continues *chain* without a hole.

    Do not call this beside a running archiver: it moves the slot on, and *chain* was read earlier.
    """
    require_slot_name(chain, slot.name)
    if slot.is_lost:
        raise SlotError(
            f"the source has removed WAL that the slot {slot.name} still needed", hint=NEW_EPOCH_HINT
        )
    if slot.confirmed_lsn is not None and slot.confirmed_lsn > chain.confirmed:
        raise SlotError(
            f"the slot {slot.name} stands at {format_lsn(slot.confirmed_lsn)}, beyond what was confirmed"
            f" ({chain.confirmed_lsn}): it was recreated, or somebody else moved it",
            hint=NEW_EPOCH_HINT,
        )


def require_same_archive(chain: Chain, newest_file: str | None, spooled: list[SpooledFile]) -> None:
    """Raise SourceChangedError unless *newest_file* is the chain's last, or one of *spooled*.

    One of *spooled* can be the newest when a crash came between its upload and the chain's next state.
    """
    expected = {stem(name) for name in (chain.last_file, *(file.name for file in spooled)) if name}
    if newest_file is None and not chain.seq:
        return
    if newest_file is not None and stem(newest_file) in expected:
        return
    raise SourceChangedError(
        f"the archive's newest change file is {newest_file or 'none'}, but the chain's is {chain.last_file}",
        hint="check the archive_* keys, and that no other archiver or script writes there; if the archive was"
        " replaced on purpose: " + NEW_EPOCH_HINT,
    )


def continue_chain(chain: Chain, spooled: list[SpooledFile]) -> tuple[Chain, list[SpooledFile]]:
    """Return the chain with the spooled files at its end, and those of them that must still be uploaded.

    Raises SpoolError when they do not follow each other.
    """
    waiting = []
    for file in spooled:
        if file.header.source_id == chain.source_id and (file.header.seq or 0) <= chain.seq:
            continue  # In the archive and recorded; the crash came before it left the spool.
        if file.header.source_id != chain.source_id or file.header.seq != chain.seq + 1:
            raise SpoolError(
                f"it does not follow {chain.last_file or 'the beginning of the chain'}",
                hint="the spool must belong to one slot and one archive; move files of others elsewhere",
                file=str(file.path),
            )
        chain = chain.followed_by(file)
        waiting.append(file)
    return chain, waiting


def format_moment(now: dt.datetime) -> str:
    return now.astimezone(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

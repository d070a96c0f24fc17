"""The chain of change files: where it stands, and the proof that the source still continues it.

Knows positions and identities; asks neither source nor archive, and touches no file but its own small one,
``chain.json``. The rules:

1. The chain's state is on the disk before the source is told that it may forget what the files hold. So
   the slot is never ahead of the state, unless somebody else moved or recreated it.
2. Transactions have one order, that of their commit LSNs. When ``last_commit_lsn`` is 0/16B3D50, a
   transaction that commits there or earlier is in the archive already, for whatever reason it is sent again.
3. Another system or slot cannot continue a chain. An operator may begin a new *epoch*, whose files say so;
   readers then stop, and begin again from a snapshot of that epoch.
4. Another timeline continues it when nothing of the chain lies beyond the point where the two parted. When
   the chain ends at 0/16B3D50 on timeline 1, and timeline 2 left that at 0/16B4000, all that is archived
   happened on both, and the slot (see 1) has all that came later. At 0/16B3000 instead, the archive holds
   transactions that the new server does not know: only a new epoch helps.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path

import msgspec

from syncdata.capture.refusals import NEW_EPOCH_HINT
from syncdata.capture.slot import Slot
from syncdata.capture.source import SystemIdentity
from syncdata.capture.spool import SpooledFile, replace_in_spool, translated
from syncdata.changes.document import read_document
from syncdata.changes.filenames import stem
from syncdata.changes.header import Footer, Header
from syncdata.changes.position import format_lsn, parse_lsn
from syncdata.errors import SlotError, SourceChangedError, SpoolError, shortened

CHAIN_FILE_NAME = "chain.json"


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the chain: its last file in the archive, and the position confirmed to the source.

    ``seq`` counts the epoch's files; ``last_file`` is the archive's newest one, of whatever epoch. All that
    was committed before ``confirmed_lsn`` is in the archive, or concerns no published table. LSNs are
    ``X/Y``, times RFC 3339 in UTC. ``first_timeline`` is set once the source has failed over: the timeline
    that the epoch began on. ``history``: by earlier timeline, where the source left it.
    ``last_end_lsn``: where the last transaction in the chain ends (None: not known)."""

    system_id: str
    timeline: int
    first_timeline: int | None = None
    history: dict[int, str] = {}
    slot: str
    epoch: str
    seq: int = 0
    last_file: str | None = None
    last_commit_lsn: str | None = None
    last_end_lsn: str | None = None
    confirmed_lsn: str
    confirmed_at: str = ""

    @property
    def archived_lsn(self) -> int:
        """The end of the last transaction in the chain, as far as it is known; never before it."""
        return parse_lsn(self.last_end_lsn) if self.last_end_lsn else max(self.confirmed, self.watermark)

    @property
    def watermark(self) -> int:
        """The last commit LSN in the chain; transactions up to it are in the chain. -1 when there is none."""
        return parse_lsn(self.last_commit_lsn) if self.last_commit_lsn else -1

    @property
    def confirmed(self) -> int:
        return parse_lsn(self.confirmed_lsn)

    def require_readable(self) -> None:
        """Raise ValueError unless every LSN and time in it can be read."""
        self.confirmed, self.watermark, self.archived_lsn  # noqa: B018
        for lsn in self.history.values():
            parse_lsn(lsn)
        if self.confirmed_at and dt.datetime.fromisoformat(self.confirmed_at).tzinfo is None:
            raise ValueError("confirmed_at has no time zone")

    @property
    def source_id(self) -> str:
        return self.header(dt.datetime.now(dt.UTC)).source_id

    def header(self, now: dt.datetime, *, start_lsn: int | None = None) -> Header:
        """Return the header of the file that would follow."""
        return Header(
            syncdata=1,
            system_id=self.system_id,
            timeline=self.timeline,
            first_timeline=self.first_timeline,
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
            last_end_lsn=file.footer.end_lsn,
        )

    def with_history(self, switches: Mapping[int, int]) -> Chain:
        """Return the chain with the history of the timeline that it is on."""
        return msgspec.structs.replace(self, history={t: format_lsn(lsn) for t, lsn in switches.items()})

    def failed_over_to(self, timeline: int, switch_lsn: int) -> Chain:
        """Return the chain on *timeline*, which left its own at *switch_lsn*. See `follow_failover`.

        What was confirmed beyond the switch was of the old timeline; the new one has other changes there.
        """
        return msgspec.structs.replace(
            self,
            timeline=timeline,
            first_timeline=self.timeline if self.first_timeline is None else self.first_timeline,
            history={},
            confirmed_lsn=format_lsn(min(self.confirmed, switch_lsn)),
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
        chain = read_document(content, Chain)
        chain.require_readable()
    except ValueError as error:
        raise SpoolError(
            f"the state of the chain is broken: {shortened(str(error))}",
            hint="remove it: the archiver then goes on from the archive's newest file if it can prove"
            " that nothing is missing, or says what to do",
            file=str(path),
        ) from None
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
        first_timeline=header.first_timeline,
        slot=header.slot,
        epoch=str(header.epoch),
        seq=header.seq or 0,
        last_file=name,
        # A file that only announces a catalog has no commit, but all before its end is in the archive.
        last_commit_lsn=footer.last_commit_lsn or format_lsn(max(end_lsn - 1, 0)),
        last_end_lsn=footer.end_lsn,
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
        raise SourceChangedError(f"{_other_timeline(chain, identity.timeline)}", hint=NEW_EPOCH_HINT)
    # Two standbys that are promoted side by side give their timelines the same number.
    # Test: test_a_timeline_of_the_same_number_but_another_history_is_another_source.
    now = {timeline: format_lsn(lsn) for timeline, lsn in identity.switches.items()}
    if chain.history and chain.history != now:
        raise SourceChangedError(
            f"the source's timeline {identity.timeline} is not the one of the chain: it left the earlier ones"
            " elsewhere, so it is another server that was promoted",
            hint="point [source] at the right server; if it was replaced on purpose: " + NEW_EPOCH_HINT,
        )
    if max(chain.confirmed, chain.watermark) > identity.wal_lsn:
        raise SourceChangedError(
            f"the source's WAL ends at {format_lsn(identity.wal_lsn)}, before what is archived"
            f" ({chain.confirmed_lsn}): it was restored from an older copy",
            hint=NEW_EPOCH_HINT,
        )


def follow_failover(chain: Chain, identity: SystemIdentity, archived_lsn: int) -> Chain:
    """Return the chain on the source's timeline, where its history proves that nothing of it is lost.

    *archived_lsn*: the end of the last transaction that is in the archive or the spool, or that a snapshot
    shows. Raises SourceChangedError when it lies beyond the switch, or there is no history that tells.
    Whether the new server's slot has all that came later, `require_same_slot` tells.
    """
    if chain.system_id != identity.system_id or chain.timeline == identity.timeline:
        return chain
    switch_lsn = identity.switches.get(chain.timeline)
    if switch_lsn is None:
        why = f"its history does not come from timeline {chain.timeline}"
    elif archived_lsn > switch_lsn:
        why = (
            f"timeline {chain.timeline} was left at {format_lsn(switch_lsn)}, but the archive holds"
            f" changes up to"
            f" {format_lsn(archived_lsn)}, which the new server does not have"
        )
    else:
        return chain.failed_over_to(identity.timeline, switch_lsn)
    raise SourceChangedError(f"{_other_timeline(chain, identity.timeline)}; {why}", hint=NEW_EPOCH_HINT)


def timeline_problem(chain: Chain, timeline: int) -> str | None:
    """Return what to tell when the source is on another timeline than the chain; None when it is not."""
    if chain.timeline == timeline:
        return None
    return (
        f"{_other_timeline(chain, timeline)}: archive_changes goes on by itself if it can prove that"
        f" nothing is"
        " missing, and else says what to do"
    )


def _other_timeline(chain: Chain, timeline: int) -> str:
    return (
        f"the source is on timeline {timeline}, the chain on {chain.timeline}: it was restored or failed over"
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

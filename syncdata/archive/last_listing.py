"""Tells whether the last listing of an archive's root still holds, so that it need not be listed again. Pure.

A directory's time changes when a name appears in it or goes. If the time is what it was before the last
listing, that listing still holds, with two exceptions, and one condition:

- Servers tell the time in whole seconds: a name may appear in the same second, but behind the listing. So
  a listing counts only if it was begun two seconds after its time was seen: the next change has another one.
- A directory's time can be set, as rsync does with that of a mirror. So nothing counts for ever.
- Not every server keeps the time of its directories, object stores behind SFTP do not. So nothing counts
  until the time has been seen to move with what the directory holds; and never again once it has not.

Files may still grow or be written over: that changes no name, so their sizes are asked for anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from syncdata.changes.filenames import ChangeFile, stem

# More of them are worth a listing.
MOST_KEPT = 4
_SETTLED_AFTER_S = 2.0
_HOLDS_FOR_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """``names``: the last change files of the listing, all that have a stem from ``complete_from`` on."""

    changed_at: int
    at_s: float
    is_settled: bool
    complete_from: str
    names: tuple[str, ...]
    sign: str

    @property
    def newest_stem(self) -> str:
        return stem(self.names[-1]) if self.names else ""


class LastListing:
    """*changed_at* is the root's time, asked for just before; *now_s* monotonic seconds, just after that.

    *since*: the stem that the listing begins with. *sign*: what is known otherwise of the last change there.
    """

    def __init__(self) -> None:
        self._seen: tuple[int, float] | None = None
        self._last: _Listing | None = None
        self._is_proved = self._is_refuted = False

    def recall(self, changed_at: int, since: str, *, now_s: float) -> tuple[str, ...] | None:
        """Return the names of the change files from *since* on; None when the root is to be listed."""
        if self._seen is None or self._seen[0] != changed_at:
            self._seen = (changed_at, now_s)
        last = self._last
        if (
            last is None
            or last.changed_at != changed_at
            or not (last.is_settled and self._is_proved)
            or self._is_refuted
            or now_s - last.at_s > _HOLDS_FOR_S
            or since < last.complete_from
        ):
            return None
        return tuple(name for name in last.names if stem(name) >= since)

    def note(
        self, changed_at: int, since: str, files: list[ChangeFile], *, sign: str = "", now_s: float
    ) -> None:
        """Note a listing that was begun after `recall` had returned None for *changed_at* and *since*."""
        assert self._seen is not None
        first = max(len(files) - MOST_KEPT, 0)
        # A file may be there under two endings: both are kept, or none of them. Test:
        # test_what_is_kept_of_a_listing_begins_with_all_names_of_a_stem.
        while first and first < len(files) and files[first].stem == files[first - 1].stem:
            first += 1
        names = tuple(file.name for file in files[first:])
        listing = _Listing(
            changed_at=changed_at,
            at_s=now_s,
            is_settled=now_s - self._seen[1] >= _SETTLED_AFTER_S,
            complete_from=stem(names[0]) if first else since,
            names=names,
            sign=sign,
        )
        last, self._last = self._last, listing
        if last is None:
            return
        has_grown = listing.newest_stem > max(last.newest_stem, last.complete_from)
        if last.changed_at != changed_at:
            self._is_proved = self._is_proved or has_grown or sign != last.sign
        elif has_grown and last.is_settled:
            self._is_refuted = True

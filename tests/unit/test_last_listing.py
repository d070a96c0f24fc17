"""When a listing of the archive's root still holds, by the root's time alone."""

from __future__ import annotations

from syncdata.archive.last_listing import MOST_KEPT, LastListing
from syncdata.changes.filenames import ChangeFile

STEMS = [f"changes_20260205_1030{second:02}" for second in range(60)]


class Root:
    """An archive's root of a server with a clock of its own, in whole seconds, and who looks at it."""

    def __init__(self) -> None:
        self.changed_at = 1_000
        self.stems = STEMS[:1]
        self.now_s = 0.0
        self.listings = 0
        self.last = LastListing()

    def put(self, *, at: int | None = None) -> str:
        """Let the next file appear; *at* is the root's time from then on."""
        self.stems = STEMS[: len(self.stems) + 1]
        self.changed_at = self.changed_at + 60 if at is None else at
        return self.stems[-1]

    def look(self, *, since: str = "", after_s: float = 0.0, sign: str = "") -> list[str]:
        self.now_s += after_s
        names = self.last.recall(self.changed_at, since, now_s=self.now_s)
        if names is None:
            self.listings += 1
            files = [ChangeFile(name=f"{stem}.json", size_bytes=1) for stem in self.stems if stem >= since]
            self.last.note(self.changed_at, since, files, sign=sign, now_s=self.now_s)
            names = tuple(file.name for file in files)
        return [name.removesuffix(".json") for name in names]

    def rest(self) -> None:
        """Look until the listing holds."""
        self.look()
        self.put()
        self.look(after_s=60)
        self.look(after_s=3)
        self.listings = 0


def test_between_two_files_there_is_no_listing() -> None:
    root = Root()
    root.rest()
    for _ in range(50):
        assert root.look(since=STEMS[1], after_s=1) == [STEMS[1]]
    assert root.listings == 0
    new = root.put()
    assert root.look(since=STEMS[1], after_s=1) == [STEMS[1], new]
    root.look(since=new, after_s=3)
    assert root.listings == 2
    for _ in range(50):
        assert root.look(since=new, after_s=1) == [new]
    assert root.listings == 2


def test_a_file_that_comes_in_the_same_second_behind_a_listing_is_not_missed() -> None:
    root = Root()
    root.rest()
    root.put()
    root.look(after_s=1)
    new = root.put(at=root.changed_at)
    assert root.look(after_s=1.5)[-1] == new
    new = root.put(at=root.changed_at)  # as long as the second of the change may still go on
    assert root.look(after_s=0.4)[-1] == new


def test_until_the_time_has_moved_with_a_file_it_counts_for_nothing() -> None:
    root = Root()
    for number in range(1, 6):
        root.look(after_s=10)
        assert root.listings == number
    root.changed_at += 60  # a time that moves by itself proves nothing
    for number in range(6, 9):
        root.look(after_s=10)
        assert root.listings == number


def test_a_new_head_proves_the_time_as_well_as_a_new_file() -> None:
    root = Root()
    root.look(sign="10:30:00")
    root.changed_at += 60
    root.look(sign="10:31:00", after_s=60)
    root.look(sign="10:31:00", after_s=3)
    root.listings = 0
    root.look(sign="10:31:00", after_s=3)
    assert root.listings == 0


def test_a_time_that_is_set_back_hides_a_file_for_five_minutes_and_is_never_believed_again() -> None:
    root = Root()
    root.rest()
    new = root.put(at=root.changed_at)
    assert new not in root.look(after_s=100)
    assert new in root.look(after_s=201)
    root.put()
    root.look(after_s=10)
    root.listings = 0
    for number in range(1, 6):
        root.look(after_s=10)
        assert root.listings == number


def test_a_table_that_stands_far_behind_has_the_root_listed() -> None:
    root = Root()
    root.stems = STEMS[:20]
    root.rest()
    assert root.look(since=STEMS[20 - MOST_KEPT], after_s=1)[0] == STEMS[20 - MOST_KEPT]
    assert root.look(since=STEMS[21 - MOST_KEPT], after_s=1)[0] == STEMS[21 - MOST_KEPT]
    listings = root.listings
    assert root.look(since=STEMS[2], after_s=1)[0] == STEMS[2]
    assert root.listings == listings + 1


def test_what_is_kept_of_a_listing_begins_with_all_names_of_a_stem() -> None:
    names = [f"{STEMS[0]}.json", f"{STEMS[0]}.json.gz", *(f"{stem}.json" for stem in STEMS[1:MOST_KEPT])]
    files = [ChangeFile(name=name, size_bytes=1) for name in names]
    last = LastListing()
    for changed_at, now_s in ((1_000, 0.0), (2_000, 60.0), (2_000, 63.0)):
        last.recall(changed_at, "", now_s=now_s)
        last.note(changed_at, "", files, sign=str(changed_at), now_s=now_s)
    assert last.recall(2_000, STEMS[1], now_s=64.0) == tuple(names[2:])
    assert last.recall(2_000, STEMS[0], now_s=64.0) is None, "one of its names is not kept"

from __future__ import annotations

from itertools import pairwise

from syncdata.apply.position import START, Position


def test_positions_sort_as_the_archive_does() -> None:
    in_order = [
        START,
        Position(file="changes_1.json", record_number=0),
        Position(file="changes_1.json", record_number=9),
        Position(file="changes_1.json", record_number=10),
        Position(file="changes_1.json", is_finished=True, record_number=12),
        Position(file="changes_2.json.gz", record_number=1),
        Position(file="changes_2.json.gz", is_finished=True, record_number=2),
    ]
    assert all(a.order < b.order for a, b in pairwise(in_order))


def test_compressing_a_file_moves_no_position() -> None:
    plain, packed = (
        Position(file="changes_1.json", record_number=3),
        Position(file="changes_1.json.zst", record_number=3),
    )
    assert plain.order == packed.order


def test_what_a_position_knows_besides_does_not_order_it() -> None:
    bare = Position(file="changes_1.json", record_number=3)
    assert (
        Position(file="changes_1.json", record_number=3, commit_lsn=7, source_id="s", file_size=9).order
        == bare.order
    )

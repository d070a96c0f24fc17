"""The real capture, applied in every way we promise, ends in the rows that production had."""

from __future__ import annotations

from tests import shop
from tests.world import World


def test_the_capture_becomes_the_expected_rows(any_world: World) -> None:
    shop.load_base(any_world)
    any_world.whitelist(*shop.TABLES)
    (any_world.archive / shop.CHANGES).write_bytes(shop.read(shop.CHANGES))
    result = any_world.sync()
    assert result.errors == ()
    assert shop.differing_tables(any_world) == []
    assert shop.audited_counts(any_world) == shop.COUNTS

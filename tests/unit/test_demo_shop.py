"""The demo's shop: the rows it claims are those its change records lead to."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from syncdata.engine.changefile import inspect, read_records
from syncdata.engine.changes import parse_lsn
from syncsite.demo.backup_host import ArchiveWriter
from syncsite.demo.shop import KEYS, Shop, Transaction, expected_text

OPENING = datetime(2026, 2, 5, 10, 30, tzinfo=UTC)


def business(seed: int) -> tuple[Shop, list[Transaction]]:
    shop = Shop(OPENING, seed=seed)
    opened = list(shop.open(customers=60, products=20))
    traded = list(shop.trade(300))
    return shop, [*opened, *traded, *shop.close_for_the_night(), *shop.trade(100)]


def replay(transactions: list[Transaction]) -> dict[str, dict[Any, dict[str, Any]]]:
    rows: dict[str, dict[Any, dict[str, Any]]] = {}
    for record in (record for transaction in transactions for record in transaction.records):
        table = rows.setdefault(record["table"], {})
        column = KEYS.get(record["table"], "id")
        if record["op"] == "TRUNCATE":
            table.clear()
            continue
        old = table.pop(record["old_keys"][column]) if "old_keys" in record else {}
        if "data" in record:
            assert record["op"] == "UPDATE" or record["data"][column] not in table
            table[record["data"][column]] = {**old, **record["data"]}
    return rows


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_replaying_the_records_gives_the_rows_of_the_shop(seed: int) -> None:
    shop, transactions = business(seed)
    assert replay(transactions) == shop.rows


def test_the_shop_does_the_same_business_every_time() -> None:
    assert business(7)[1] == business(7)[1]


def test_the_business_holds_what_a_sync_may_stumble_over() -> None:
    _, transactions = business(1)
    records = [record for transaction in transactions for record in transaction.records]
    assert {record["op"] for record in records} == {"INSERT", "UPDATE", "DELETE", "TRUNCATE"}
    positions = [parse_lsn(record["lsn"]) for record in records]
    assert positions != sorted(positions)  # records of transactions side by side
    commits = [transaction.commit_lsn for transaction in transactions]
    assert commits == sorted(set(commits))
    assert any(
        record["op"] == "UPDATE" and record["old_keys"]["sku"] != record["data"]["sku"]
        for record in records
        if record["table"] == "products"
    )


def test_expected_texts_are_those_of_postgresql() -> None:
    assert [expected_text(value) for value in (True, False, 7, "12.50")] == ["true", "false", "7", "12.50"]


@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".json.zst"])
def test_a_framed_file_is_finished_and_names_the_one_before(tmp_path: Path, suffix: str) -> None:
    shop = Shop(OPENING)
    writer = ArchiveWriter(folder=tmp_path)
    plain = writer.write_plain(shop.open(customers=60, products=20))
    shop.clock = shop.clock.replace(minute=31)
    transactions = list(shop.trade(50))
    path = writer.write_framed(transactions, suffix)
    stream = io.BytesIO(path.read_bytes())
    inspection = inspect(stream, path.name)
    assert not inspection.unfinished
    assert inspection.header is not None and inspection.header.prev == plain.name
    assert inspection.footer is not None
    assert inspection.footer.records == len(list(read_records(stream, path.name)))
    assert sorted(tmp_path.iterdir()) == [plain, path]  # nothing unfinished is left


def test_two_files_never_share_a_name(tmp_path: Path) -> None:
    shop = Shop(OPENING)
    writer = ArchiveWriter(folder=tmp_path)
    writer.write_framed(list(shop.open(customers=10, products=10)))
    with pytest.raises(FileExistsError):
        writer.write_framed(list(shop.trade(5)))

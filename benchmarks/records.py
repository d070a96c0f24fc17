"""Measure what a record costs on the local side before the server sees it, in CPU time of one thread.

    python -m benchmarks.records [--records N] [--rounds N] [W1 W2 W3]

Each workload's plain file is read, cut into batches and planned; beside it, in turns with it, the
same lines are decoded to dicts by msgspec, which is the least that a reader of any kind would do. The figures
are medians; the ratio of the two is what moves least from machine to machine.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks.source import new_source
from benchmarks.workloads import workload
from syncdata.apply.plan.batches import Batch, BatchFile, Limits, cut_batches
from syncdata.apply.plan.prepare import prepare
from syncdata.apply.plan.schema import Column, ColumnType, TableSchema
from syncdata.apply.plan.table_plan import TablePlan
from syncdata.changes.names import TableName
from syncdata.changes.reader import read_pieces
from syncsite.demo.postgres import PostgresServer, embedded_binaries

NAME = "changes_20260205_103000.json"
TABLE = TableName("public", "account")
COLUMNS = {
    "id": "bigint",
    "customer_id": "integer",
    "status": "text",
    "amount": "numeric(12,2)",
    "note": "text",
    "tags": "jsonb",
    "created_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone",
}
SCHEMA = TableSchema(
    name=TABLE,
    oid=1,
    key=("id",),
    columns=tuple(
        Column(name=name, sql_type=sql_type, type=ColumnType(kind="json" if sql_type == "jsonb" else "plain"))
        for name, sql_type in COLUMNS.items()
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=["W1", "W2", "W3"])
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    server = PostgresServer(binaries=embedded_binaries())
    server.start()
    try:
        contents = {name: content_of(server, name, options.records) for name in options.workloads}
    finally:
        server.stop()
    for name, content in contents.items():
        records = content.count(b"\n")
        decoded, planned = [], []
        for _ in range(options.rounds):
            decoded.append(cpu_time(decode, content) / records)
            planned.append(cpu_time(plan, content) / records)
        dicts, ours = statistics.median(decoded) * 1e6, statistics.median(planned) * 1e6
        print(
            f"{name}: to dicts {dicts:.2f} us a record; read, cut and planned {ours:.2f} us,"
            f" {ours / dicts:.2f} times as much",
            flush=True,
        )


def content_of(server: PostgresServer, name: str, records: int) -> bytes:
    """Return a plain file of the workload's changes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        new_source(server, workload(name, records), Path(folder)) as source,
    ):
        source.work()
        plain = Path(folder) / "plain"
        plain.mkdir()
        source.archive().write_plain(plain, source.types())
        [path] = plain.iterdir()
        return path.read_bytes()


def cpu_time(work: Callable[[bytes], None], content: bytes) -> float:
    started = time.thread_time()
    work(content)
    return time.thread_time() - started


def decode(content: bytes) -> None:
    decoder = msgspec.json.Decoder()
    for line in content.splitlines():
        decoder.decode(line)


def plan(content: bytes) -> None:
    file = BatchFile(name=NAME, is_plain=True)
    pieces = read_pieces(io.BytesIO(content), NAME)
    limits = Limits(batch_records=20_000, batch_bytes=1 << 25)
    for segment in cut_batches(pieces, file=file, watermarks={TABLE: None}, limits=limits):
        for share in prepare(Batch(segments=(segment,)), {TABLE: SCHEMA}).shares.values():
            assert isinstance(share.plan, TablePlan)


if __name__ == "__main__":
    main()

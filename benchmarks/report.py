"""The figures of a run as a page's tables, and as JSON. Pure but for the files that it is told to write."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from benchmarks.figures import Figures
from benchmarks.small import A_FILE, AT_REST

BEGIN = "<!-- written by `make bench` -->"
END = "<!-- written by `make bench`: end -->"
# What each way is measured against, and the ways in the order of the table.
RATIOS = {
    "plain files": ("native subscription", "COPY"),
    "headed files": ("native subscription", "COPY"),
    ".json.zst over SFTP": ("headed files",),
    "headed, 250 records a file": ("headed files",),
    "headed, 50 records a file": ("headed files",),
    "archiver": ("pg_recvlogical",),
    "snapshot": ("pg_dump",),
    "first load": ("pg_restore",),
    "resync": ("pg_restore",),
}


class Result(msgspec.Struct, kw_only=True):
    """*runs*: by workload and way, what each run took. *titles* says what the workloads are."""

    machine: dict[str, str]
    titles: dict[str, str] = {}
    runs: dict[str, dict[str, list[Figures]]] = {}

    def add(self, workload: str, way: str, figures: Figures) -> None:
        self.runs.setdefault(workload, {}).setdefault(way, []).append(figures)


def median(runs: Sequence[Figures]) -> Figures:
    """Return the median of each figure; the memory's is the most."""

    def middle(name: str) -> float | None:
        values = [value for run in runs if (value := getattr(run, name)) is not None]
        return statistics.median(values) if values else None

    return Figures(
        records=runs[0].records,
        seconds=middle("seconds") or 0.0,
        client_s=middle("client_s"),
        server_s=middle("server_s"),
        source_s=middle("source_s"),
        peak_mib=max((run.peak_mib for run in runs if run.peak_mib is not None), default=None),
    )


def tables(result: Result) -> str:
    """Return the result in Markdown."""
    machine = ", ".join(f"{name} {value}" for name, value in result.machine.items())
    parts = [f"Measured with {machine}.\n"]
    for workload, ways in result.runs.items():
        medians = {way: median(runs) for way, runs in ways.items()}
        how_many = max(len(runs) for runs in ways.values())
        records = next(iter(medians.values())).records
        parts.append(
            f"**{workload}**: {result.titles.get(workload, '')}; {records:,} records,"
            f" {'median of ' if how_many > 1 else ''}{how_many} {'runs' if how_many > 1 else 'run'}\n"
        )
        parts.append(
            "| way | records a second | ratio | client CPU, µs a record | server CPU, µs a record"
            " | production CPU, µs a record | peak memory |\n|---|---|---|---|---|---|---|"
        )
        parts += [_row(way, medians) for way in medians]
        parts.append("")
    return "\n".join(parts)


def _row(way: str, medians: Mapping[str, Figures]) -> str:
    figures = medians[way]
    cells = [
        way,
        "" if way in (A_FILE, AT_REST) else f"{figures.rate:,.0f}",
        _ratios(way, medians),
        *(_per_record(value, figures) for value in (figures.client_s, figures.server_s, figures.source_s)),
        "" if figures.peak_mib is None else f"{figures.peak_mib:.0f} MiB",
    ]
    return f"| {' | '.join(cells)} |"


def _ratios(way: str, medians: Mapping[str, Figures]) -> str:
    return ", ".join(
        f"{medians[way].rate / medians[other].rate:.2f} of {other}"
        for other in RATIOS.get(way, ())
        if other in medians
    )


def _per_record(seconds: float | None, figures: Figures) -> str:
    if seconds is None:
        return ""
    if not figures.records:
        return f"{seconds / figures.seconds:.2%} of a core"
    return f"{seconds / figures.records * 1e6:.1f}"


def write(result: Result, page: Path) -> None:
    """Put the tables between the marks of *page*, and all figures beside it as JSON."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{tables(result)}\n{END}{after}", encoding="utf-8")
    page.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")

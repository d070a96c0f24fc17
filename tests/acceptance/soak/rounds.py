"""Rounds: a workload runs while faults come one after the other; then it is quiet, and all is judged."""

from __future__ import annotations

import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random

import psycopg

from syncsite.demo.postgres import PostgresServer
from tests.acceptance.soak.faults import DELICATE, FAULTS, REBUILDING, Harmless, HasBitten
from tests.acceptance.soak.judge import Judge, Judged, Observer
from tests.acceptance.soak.workload import WRITER_PAUSE_S, Workload
from tests.acceptance.soak.world import PATIENCE_S, SoakError, World, running_world

_PAUSE_S = (0.0, 0.3)
_BITE_S = 8.0  # what has not bitten by then is tried again, alone
_TRIES = 4


@dataclass(slots=True)
class Report:
    """What was done and looked at, of any number of worlds."""

    seeds: list[int] = field(default_factory=list)
    rounds: int = 0
    committed: int = 0
    given_up: int = 0
    kills: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    judged: Judged = field(default_factory=Judged)
    failures: list[SoakError] = field(default_factory=list)
    minutes: float = 0.0

    def __str__(self) -> str:
        faults, done = (
            "\n".join(f"  {count:5} {name}" for name, count in sorted(counts.items()))
            for counts in (self.faults, self.done)
        )
        remedies = ", ".join(f"{kind} {count}" for kind, count in sorted(self.judged.remedies.items()))
        ended = ", ".join(f"{name} {count}" for name, count in sorted(self.ended.items()))
        kinds = Counter(failure.kind for failure in self.failures)
        counts = [*self.faults.values()]
        return (
            f"minutes {self.minutes:.1f}; seeds {len(self.seeds)} ({self.seeds[0]} to {self.seeds[-1]});"
            f" rounds {self.rounds}\n"
            f"transactions committed {self.committed}, given up {self.given_up}\n"
            f"rows compared {self.judged.rows}, records counted {self.judged.records},"
            f" reads in one snapshot {self.judged.reads}\n"
            f"processes killed: {self.kills}; ended otherwise: {ended or 'none'}\n"
            f"remedies: {remedies or 'none'}\n"
            f"{self.judged.verified}\n"
            f"failures: {', '.join(f'{kind} {kinds[kind]}' for kind in SoakError.KINDS)}\n"
            f"in the transactions:\n{done}\n"
            f"{len(counts)} faults, each {min(counts, default=0)} to {max(counts, default=0)} times,"
            f" {sum(counts)} together:\n{faults}"
        )


class Deck:
    """Gives all faults in a random order, then all again: none is forgotten, and all come equally often."""

    def __init__(self, seed: int, names: Sequence[str]) -> None:
        self._chance, self._names = Random(f"deck {seed}"), sorted(names)
        self._left: list[str] = []

    def __iter__(self) -> Iterator[str]:
        while True:
            if not self._left:
                self._left = self._chance.sample(self._names, len(self._names))
            yield self._left.pop()


def run_world(
    servers: tuple[PostgresServer, PostgresServer],
    folder: Path,
    seed: int,
    *,
    rounds: int,
    faults_a_round: int,
    deck: Iterator[str],
    report: Report,
    at_once: int = 1,
    writer_pause_s: float = WRITER_PAUSE_S,
    verifies: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Run *rounds* in a new world of *seed*, each with so many faults of the *deck*, that many *at_once*.
    Raises SoakError, with the round and its faults."""
    report.seeds.append(seed)
    chance = Random(f"faults {seed}")
    with running_world(*servers, folder, f"soak_{seed}", verifies=verifies) as world:
        judge = Judge(world)
        judge.judged = report.judged
        try:
            judge.settle()
            judge.judge()
            names = sorted(islice(deck, rounds * faults_a_round), key=REBUILDING.__contains__)
            for number in range(1, rounds + 1):
                these = names[(number - 1) * faults_a_round :][:faults_a_round]
                breaker = Breaker(world, chance, chance.sample(these, len(these)), at_once)
                try:
                    workload = Workload(world.source, world.local, f"{seed} {number}", pause_s=writer_pause_s)
                    _run_round(world, judge, workload, chance, breaker, report)
                except BaseException as error:
                    (folder / "failure.txt").write_text(traceback.format_exc())
                    if not isinstance(error, Exception):
                        raise
                    raise SoakError(
                        f"seed {seed}, round {number}, after {', '.join(breaker.done)}: {error}",
                        getattr(error, "kind", "other"),
                    ) from error
                report.rounds += 1
                say(f"seed {seed}, round {number}: {', '.join(breaker.done)}")
            _stop(world)
            judge.require_nothing_left()
        finally:
            for program in (world.daemon, world.archiver):
                report.kills += program.ends.count(-signal.SIGKILL)
                report.ended[program.name] += sum(end != -signal.SIGKILL for end in program.ends)


def _run_round(
    world: World, judge: Judge, workload: Workload, chance: Random, breaker: Breaker, report: Report
) -> None:
    with Observer(world.local, report.judged):
        try:
            with workload:
                breaker.run()
        finally:
            report.faults.update(breaker.bitten)
            report.committed += workload.committed
            report.given_up += workload.given_up
            report.done.update(workload.done)
        judge.settle()
    judge.judge()
    judge.judge_verification(chance)


class Breaker:
    """Breaks all of *names*, so many *at_once*, and those that did not bite again, alone.

    ``done`` tells of the groups, for people; ``bitten`` counts what was really broken.
    """

    def __init__(self, world: World, chance: Random, names: Sequence[str], at_once: int) -> None:
        self._world, self._chance, self._at_once = world, chance, at_once
        self._left = [*names]
        self._tries: Counter[str] = Counter()
        self.done: list[str] = []
        self.bitten: Counter[str] = Counter()

    def run(self) -> None:
        while self._left:
            size = 1 if self._tries[self._left[0]] else self._at_once
            group, self._left = self._left[:size], self._left[size:]
            group.sort(key=lambda name: name not in DELICATE)
            self.done.append(" with ".join(group))
            bitten = self._break(group)
            self.bitten.update(bitten)
            for name in (Counter(group) - Counter(bitten)).elements():
                self._tries[name] += 1
                if self._tries[name] < _TRIES:
                    self._left.append(name)

    def _break(self, names: Sequence[str]) -> list[str]:
        """Break all of *names*, each while those before it are broken; return those that have bitten."""
        held: list[tuple[str, HasBitten]] = []
        with ExitStack() as broken:
            for name in names:
                try:
                    held.append((name, broken.enter_context(FAULTS[name](self._world, self._chance))))
                except Harmless:
                    continue
                except psycopg.OperationalError:  # the server is away that it would break
                    if not held:
                        raise
                time.sleep(self._chance.uniform(*_PAUSE_S))
            bitten: dict[int, str] = {}
            deadline = time.monotonic() + _BITE_S
            while len(bitten) < len(held) and time.monotonic() < deadline:
                bitten |= {at: name for at, (name, has_bitten) in enumerate(held) if has_bitten()}
                time.sleep(0.02)
        return [*bitten.values()]


def _stop(world: World) -> None:
    """Let both programs end as an operator lets them."""
    for program in (world.archiver, world.daemon):
        program.send(signal.SIGTERM)
        if program.process is not None and (status := program.process.wait(PATIENCE_S)) != 0:
            raise SoakError(f"{program.name} stopped with status {status}")
        program.process = None

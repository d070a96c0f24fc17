"""Run a random workload on two real servers, break what lies between them, and compare what arrives.

    python -m tests.acceptance.soak [--minutes N] [--seeds N] [--seed S] [--rounds N] [--faults N]
        [--at-once N] [--pause S] [--only FAULT ...] [--verify] [--go-on] [--report FILE]

Every seed is a new pair of databases, an sshd, an archiver and a daemon; every round of it is a workload, a
few faults, and a judgement when all is quiet again. A seed plans the same transactions and faults each
time; how they fall together is up to the machine. Exit status 1 when something is not as it must be: then the
difference is printed, and the logs of that seed stay in the folder that is named. With --go-on, other seeds
follow. The file of --report has the totals after each seed.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from syncsite.demo import postgres
from tests.acceptance.soak.faults import FAULTS
from tests.acceptance.soak.rounds import Deck, Report, run_world
from tests.acceptance.soak.workload import WRITER_PAUSE_S
from tests.acceptance.soak.world import SoakError, running_servers
from tests.memory import roomy_memory


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.acceptance.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="faults: " + ", ".join(sorted(FAULTS)),
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="begin no seed after these (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="so many at least (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the first; the others follow (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="of each seed (%(default)s)")
    parser.add_argument(
        "--faults", type=int, default=-(-len(FAULTS) // 2), help="in each round (%(default)s)"
    )
    parser.add_argument("--at-once", type=int, default=3, help="so many of them together (%(default)s)")
    parser.add_argument(
        "--pause",
        type=float,
        default=WRITER_PAUSE_S,
        help="of a writer between transactions, s (%(default)s)",
    )
    parser.add_argument("--only", nargs="+", choices=sorted(FAULTS), metavar="FAULT", help="no other ones")
    parser.add_argument("--verify", action="store_true", help="with verification at work, held to its word")
    parser.add_argument("--go-on", action="store_true", help="with the next seed after one that failed")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the totals there, too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and everything that was started, too
    postgres.HOMES = roomy_memory()
    folder = Path(tempfile.mkdtemp(prefix="syncdata-soak-"))
    report, deck = Report(), Deck(options.seed, options.only or [*FAULTS])
    started = time.monotonic()
    seed = options.seed
    with running_servers() as servers:
        while seed < options.seed + options.seeds or time.monotonic() - started < options.minutes * 60:
            try:
                run_world(
                    servers,
                    folder / str(seed),
                    seed,
                    rounds=options.rounds,
                    faults_a_round=options.faults,
                    deck=iter(deck),
                    at_once=options.at_once,
                    report=report,
                    writer_pause_s=options.pause,
                    verifies=options.verify,
                )
            except Exception as error:
                report.failures.append(error if isinstance(error, SoakError) else SoakError(repr(error)))
                print(f"FAILED: {error}\nlogs: {folder / str(seed)}", file=sys.stderr)
            else:
                shutil.rmtree(folder / str(seed))
            finally:  # also when it is stopped
                report.minutes = (time.monotonic() - started) / 60
                if options.report is not None:
                    options.report.write_text(f"{report}\n")
            if report.failures and not options.go_on:
                break
            seed += 1
    print(report)
    if report.failures:
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

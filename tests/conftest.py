"""The tests' Django: the site's own settings, on a configuration file that names the default test server."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from syncsite.demo import postgres as servers
from syncsite.demo.postgres import PostgresServer, embedded_binaries
from tests.memory import roomy_memory

pytest_plugins = [
    *("tests.postgres", "tests.matrix", "tests.disks", "tests.sshd"),
    *("tests.world", "tests.production", "tests.embedding", "tests.standby"),
]

# What the developer's own environment says must not reach the tests.
FOREIGN = (
    "ARCHIVE_",
    "PG",
    "SOURCE_",
    "DATA_SYNC_",
    "METRIC_FREQ",
    "BATCH_",
    "MASK_",
    "SSH_AUTH_SOCK",
    "DJANGO_",
)

# What takes long to make, or stands once on a machine: the tests that use one of these run in one worker, one
# after the other. All others go to whichever worker is free.
IN_ONE_WORKER = ("environment", "unfit_server")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="fail when a test was skipped")


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist's own mark, where the tests are run without it.
    config.addinivalue_line("markers", "xdist_group(name): the tests of one name run in one worker")
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]
    servers.HOMES = roomy_memory()
    # Where workers run the tests, each of them comes here itself; what we set it would find set already.
    if config.getoption("dist", "no") == "no":
        _set_up_django(config)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name in {*IN_ONE_WORKER}.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(name))


def _set_up_django(config: pytest.Config) -> None:
    """Name the default server, which starts when a test asks for it, and start Django on it."""
    from tests.postgres import DEFAULT_SERVER  # not above: pytest rewrites the asserts of its plugins first

    server = PostgresServer(binaries=embedded_binaries())
    config.stash[DEFAULT_SERVER] = server
    folder = Path(tempfile.mkdtemp(prefix="syncdata-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # a worker of xdist runs no other clean-up
    os.environ["DATA_SYNC_CONFIG"] = str(_write_configuration(folder, server))
    os.environ["DJANGO_SETTINGS_MODULE"] = "syncsite.settings"

    import django

    django.setup()


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("--no-skips") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def django_db_modify_db_settings(postgres: PostgresServer) -> None:
    """The default server must run before pytest-django makes its database there."""


def _write_configuration(folder: Path, server: PostgresServer) -> Path:
    archive = folder / "archive"
    archive.mkdir()
    path = folder / "syncdata.toml"
    path.touch(mode=0o600)
    path.write_text(
        f"""
archive_backend = "local"
archive_dir = "{archive}"
pg_host = "{server.host}"
pg_port = {server.port}
pg_user = "{server.user}"
pg_password = "{server.password}"
pg_database = "syncdata"
"""
    )
    return path

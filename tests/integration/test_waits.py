"""A setup and a snapshot that must wait for others at the source: they say for whom."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from syncdata.capture import waits
from syncdata.conf import source_from_toml
from syncdata.production import ProductionService
from syncsite.demo.postgres import SETTINGS, PostgresServer
from tests.postgres import VERSIONS, other_servers
from tests.production import Production


@pytest.fixture(scope="module", params=VERSIONS)
def server(request: pytest.FixtureRequest, postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A server that takes prepared transactions."""
    binaries = postgres.binaries if request.param == "18" else other_servers()[request.param]
    server = PostgresServer(binaries=binaries, settings=SETTINGS | {"max_prepared_transactions": "4"})
    server.start()
    yield server
    server.stop()


@pytest.fixture
def shop(make_production: Callable[..., Production], server: PostgresServer) -> Production:
    shop = make_production(server)
    shop.execute("CREATE TABLE users (id int PRIMARY KEY)", "CREATE TABLE beside (id int PRIMARY KEY)")
    shop.publish("users")
    return shop


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "_SAY_AFTER_S", 0.1)


class Told(logging.Handler):
    """Does *then* as soon as somebody says that he waits, and keeps what he said."""

    def __init__(self, then: Callable[[], object]) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._then = then

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
        if len(self.texts) == 1:
            self._then()


@pytest.fixture
def told() -> Iterator[Callable[[Callable[[], object]], Told]]:
    handlers: list[Told] = []

    def listen(then: Callable[[], object]) -> Told:
        handlers.append(Told(then))
        waits.logger.addHandler(handlers[-1])
        return handlers[-1]

    yield listen
    for handler in handlers:
        waits.logger.removeHandler(handler)


PREPARED = "BEGIN; INSERT INTO beside VALUES (1); PREPARE TRANSACTION 'the app''s orphan'"
LOCKING = "BEGIN; LOCK users IN ACCESS EXCLUSIVE MODE; PREPARE TRANSACTION 'the app''s orphan'"
END = "ROLLBACK PREPARED 'the app''s orphan'"


@pytest.mark.parametrize("prepared", [PREPARED, LOCKING])
def test_a_snapshot_names_the_prepared_transaction_that_it_waits_for(
    shop: Production, told: Callable[..., Told], prepared: str
) -> None:
    shop.archive()
    shop.execute(prepared)
    listening = told(lambda: shop.execute(END))
    shop.snapshot("users")
    (text,) = listening.texts
    assert text.startswith("the snapshot waits for the prepared transaction 'the app''s orphan' of role ")
    assert f"in database {shop.database.name} for " in text
    assert "only COMMIT PREPARED 'the app''s orphan' or ROLLBACK PREPARED 'the app''s orphan'" in text


def test_a_setup_names_those_that_the_slot_waits_for(
    shop: Production, told: Callable[..., Told], tmp_path: Path
) -> None:
    shop.drop_slot()
    keys = shop.database.pg_keys | {"slot_name": shop.slot_name, "tables": ["users"]}
    archive = {"archive_backend": "local", "archive_dir": str(tmp_path)}
    service = ProductionService(source_from_toml(archive | {"source": keys}, {}, tmp_path / "syncdata.toml"))
    shop.execute(PREPARED)
    with shop.database.connect(application_name="night job") as writer:
        writer.execute("INSERT INTO beside VALUES (2)")
        pid = writer.info.backend_pid

        def end() -> None:
            writer.commit()
            shop.execute(END)

        listening = told(end)
        service.setup()
    (text,) = listening.texts
    assert text.startswith("the slot waits for the prepared transaction 'the app''s orphan'")
    assert f"; the transaction of pid {pid} of role " in text and ", application night job for " in text


def test_a_snapshot_names_the_session_that_holds_the_table(
    shop: Production, told: Callable[..., Told]
) -> None:
    shop.archive()
    with shop.database.connect(application_name="migration") as holder, shop.database.connect() as writer:
        holder.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        # Another transaction that has written keeps no lock, but is waited for where the slot is made.
        writer.execute("SELECT 1")
        listening = told(holder.commit)
        shop.snapshot("users")
        pid = holder.info.backend_pid
    assert len(listening.texts) == 1 and f"the transaction of pid {pid} of role " in listening.texts[0]


def test_a_stop_ends_the_wait(shop: Production, told: Callable[..., Told]) -> None:
    shop.archive()
    shop.execute(PREPARED)
    stop = threading.Event()
    told(stop.set)
    assert shop.snapshot("users", stop=stop) == []
    shop.execute(END)


def test_a_prepared_transaction_can_be_ended_by_what_is_said_of_it_whatever_its_name(
    shop: Production, told: Callable[..., Told]
) -> None:
    shop.archive()
    shop.execute(
        r"BEGIN; INSERT INTO beside VALUES (1); PREPARE TRANSACTION E'it''s\n\\a \U0001F600 \u2028 ''night'"
    )
    listening = told(lambda: shop.execute(remedy()))

    def remedy() -> str:
        return listening.texts[0].partition(" or ")[2].removesuffix(" there ends")

    shop.snapshot("users")
    assert remedy().startswith("ROLLBACK PREPARED E'")
    assert "\n" not in listening.texts[0]

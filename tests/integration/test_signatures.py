"""Readers that hold public keys apply what the archiver signed, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from syncdata.archive.archive import Archive
from syncdata.archive.local import LocalStorage
from syncdata.archive.signatures import load_signer, read_public_keys
from syncdata.conf import source_from_toml
from syncdata.errors import ConfigError, DeliveryError, ParseError
from syncdata.production import ProductionService
from syncdata.service import format_status
from tests.framed import Record, Writer, file_name
from tests.keys import KeyPair, make_key
from tests.production import Production
from tests.world import World, insert


def row(number: int) -> Record:
    return {"table": "t", "op": "INSERT", "data": {"id": number}}


@pytest.fixture
def key(tmp_path: Path) -> KeyPair:
    return make_key(tmp_path / "signing")


@pytest.fixture
def pair(make_world: Callable[..., World], key: KeyPair) -> World:
    world = make_world(archive_public_keys=[key.line])
    world.execute("CREATE TABLE t (id int PRIMARY KEY)")
    world.whitelist("t")
    return world


class Signed:
    """Writes change files and snapshots that *key* has signed."""

    def __init__(self, world: World, key: KeyPair) -> None:
        self.archive, self.key, self.writer = world.archive, key, Writer(world.archive)

    def changes(self, number: int, *, prev: int | None = -1) -> Path:
        path = self.writer.changes(number, [(number * 10, [row(number)])], prev=prev)
        return self.key.sign(path, self.archive)

    def snapshot(self, number: int, *rows: int, prev: int, table: str = "t") -> Path:
        found = [{"id": row} for row in rows]
        return self.key.sign(self.writer.snapshot(number, table, prev * 10, found, prev=prev), self.archive)


@pytest.fixture
def signed(pair: World, key: KeyPair) -> Signed:
    return Signed(pair, key)


def ids(world: World) -> list[int]:
    return [number for (number,) in world.rows("SELECT id FROM t ORDER BY id")]


def error_of(world: World) -> str:
    return world.checkpoint("t")[3] or ""


def test_what_is_signed_is_applied_and_the_status_says_that_it_is_asked(
    pair: World, signed: Signed, key: KeyPair
) -> None:
    signed.changes(1)
    signed.snapshot(2, 1, prev=1)
    signed.changes(3, prev=1)
    pair.sync()
    assert ids(pair) == [1, 3] and pair.checkpoint("t")[2] == "active"
    with pair.service() as service:
        assert f"signed with: {key.signer.fingerprint}" in format_status(service.get_status())


def unsigned(signed: Signed) -> Path:
    return signed.writer.changes(2, [(20, [row(2)])])


def plain(signed: Signed) -> Path:
    path = signed.archive / file_name(2)
    path.write_text('{"table":"t","op":"INSERT","data":{"id":99},"ts":"1"}\n')
    return path


def of_another_key(signed: Signed) -> Path:
    return make_key(signed.archive.parent / "other").sign(unsigned(signed), signed.archive)


def other_rows(signed: Signed) -> Path:
    """Rows and SHA-256 are replaced, the signature is kept."""
    path = signed.changes(2)
    good = path.read_bytes()
    forged = signed.writer.changes(2, [(20, [row(99)])]).read_bytes()
    tail, signature = forged[:-2], good[good.index(b',"key":') :]
    path.write_bytes(tail + signature)
    return path


def another_count(signed: Signed) -> Path:
    path = signed.changes(2)
    path.write_bytes(path.read_bytes().replace(b'"transactions":1', b'"transactions":0'))
    return path


def an_old_one_again(signed: Signed) -> Path:
    """Its header fits here: only the name that was signed is another."""
    path = signed.writer.changes(7, [(70, [row(70)])], seq=2, prev=1)
    signed.key.sign(path, signed.archive)
    return path.rename(signed.archive / file_name(2))


def without_its_tail(signed: Signed) -> Path:
    path = signed.changes(2)
    content = path.read_bytes()
    first, rest = content.split(b"\n", 1)
    path.write_bytes(first + b"\n" + rest[rest.rindex(b"# {") :])
    return path


@pytest.mark.parametrize(
    "forge", [unsigned, plain, of_another_key, other_rows, another_count, an_old_one_again, without_its_tail]
)
def test_what_is_not_signed_so_is_refused_until_the_good_file_is_there(
    pair: World, signed: Signed, forge: Callable[[Signed], Path]
) -> None:
    signed.changes(1)
    pair.sync()
    path = forge(signed)
    pair.sync()
    assert ids(pair) == [1] and pair.checkpoint("t")[2] == "blocked"
    assert "SHD_SYN_063" in error_of(pair) and path.name in error_of(pair)
    path.unlink()
    signed.changes(2)
    pair.sync()
    assert ids(pair) == [1, 2] and pair.checkpoint("t")[2] == "active"


def test_two_files_that_are_swapped_are_both_refused(pair: World, signed: Signed) -> None:
    signed.changes(1)
    second, third = signed.changes(2), signed.changes(3)
    aside = pair.state_dir / "aside"
    for old, new in ((second, aside), (third, second), (aside, third)):
        old.rename(new)
    pair.sync()
    assert ids(pair) == [1] and "is not what was signed" in error_of(pair)


def test_a_snapshot_that_is_not_signed_or_of_another_table_gives_way_to_an_older_one(
    pair: World, signed: Signed, caplog: pytest.LogCaptureFixture
) -> None:
    signed.changes(1)
    signed.snapshot(2, 1, prev=1)
    signed.writer.snapshot(3, "t", 10, [{"id": 77}], prev=1)
    other = signed.snapshot(4, 88, prev=1, table="other")
    shutil.copy(other, other.with_name("public.t.json.gz"))
    pair.sync()
    assert ids(pair) == [1]
    assert caplog.text.count("passed over") == 2


def test_the_way_from_an_unsigned_archive_leads_over_snapshots(pair: World, signed: Signed) -> None:
    signed.writer.changes(1, [(10, [row(1)])])
    pair.sync()
    assert "it is not signed" in error_of(pair) and "archive_changes --snapshot" in error_of(pair)
    signed.snapshot(2, 1, prev=1)
    signed.changes(3, prev=1)
    with pair.service() as service:
        service.resync("t")
    pair.sync()
    assert ids(pair) == [1, 3] and pair.checkpoint("t")[2] == "active"


def test_without_keys_signed_files_are_read_as_ever(world: World, key: KeyPair) -> None:
    world.execute("CREATE TABLE t (id int PRIMARY KEY)")
    world.whitelist("t")
    Signed(world, key).changes(1)
    world.write(file_name(2), [insert("other", id=1)])
    world.sync()
    assert ids(world) == [1]


def test_the_archiver_signs_files_snapshots_and_head_and_tells_so(
    production: Production, make_world: Callable[..., World], tmp_path: Path
) -> None:
    """With a key as the documentation says to make it."""
    path = tmp_path / "syncdata-signing"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    lines = read_public_keys([f"{path}.pub"])
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", path], check=True, capture_output=True, text=True
    ).stdout
    assert load_signer(path).fingerprint in shown
    production.execute("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    production.publish("t")
    production.options["signer"] = load_signer(path)
    production.snapshot("t")
    production.execute("INSERT INTO t VALUES (2)")
    production.archive()
    world = make_world(archive_public_keys=[f"{path}.pub"], archive_dir=production.archive_dir)
    world.execute("CREATE TABLE t (id int PRIMARY KEY)")
    world.whitelist("t")
    world.sync()
    assert ids(world) == [1, 2] and world.checkpoint("t")[2] == "active"
    archive = Archive(LocalStorage(production.archive_dir), keys=make_key(tmp_path / "other").public)
    with pytest.raises(ParseError, match="not among archive_public_keys"):
        archive.read_head()
    keys = production.database.pg_keys | {
        "tables": ["t"],
        "slot_name": production.slot_name,
        "spool_dir": str(production.spool_dir),
        "signing_key_file": str(path),
    }
    toml = {"archive_backend": "local", "archive_dir": str(production.archive_dir), "source": keys}
    service = ProductionService(source_from_toml(toml, {}, tmp_path / "syncdata.toml"))
    assert lines and service.get_status().signs_with == load_signer(path).fingerprint
    path.chmod(0o644)
    status = service.get_status()
    assert status.signs_with is None and "chmod 600" in str(status.problems)
    with pytest.raises(ConfigError, match="source.signing_key_file"):
        service.take_snapshots(["t"], stop=threading.Event())


def test_a_file_that_lay_in_the_spool_before_the_archiver_signed_is_named_when_it_is_delivered(
    production: Production,
    key: KeyPair,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object) -> None:
        raise DeliveryError("the disk is full")

    production.execute("CREATE TABLE t (id int PRIMARY KEY)")
    production.publish("t")
    production.archive()
    production.execute("INSERT INTO t VALUES (1)")
    with monkeypatch.context() as patch, pytest.raises(DeliveryError):
        patch.setattr(Archive, "put", refuse)
        production.archive()
    [waiting] = production.spool_dir.glob("changes_*")
    production.options["signer"] = key.signer
    production.execute("INSERT INTO t VALUES (2)")
    production.archive()
    assert len(list(production.archive_dir.glob("changes_*"))) == 2
    said = [text for text in caplog.messages if "was written before the archiver signed" in text]
    assert len(said) == 1 and said[0].startswith(waiting.name)

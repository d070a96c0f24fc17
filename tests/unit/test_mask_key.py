"""The key of the masks: read where only its owner can, and shown nowhere."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from syncdata.privacy.key import MaskKey, from_text, make_key_file, read_key_file

DIGITS = "0123456789abcdef" * 4


def test_a_key_file_is_its_owners_alone_and_read_as_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "mask.key"
    made = make_key_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key_file(path) == made
    assert read_key_file(path).fingerprint == made.fingerprint
    assert make_key_file(tmp_path / "other.key") != made


def test_a_key_that_is_there_is_never_written_over(tmp_path: Path) -> None:
    made = make_key_file(tmp_path / "mask.key")
    with pytest.raises(FileExistsError):
        make_key_file(tmp_path / "mask.key")
    assert read_key_file(tmp_path / "mask.key") == made


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o644])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "mask.key"
    make_key_file(path)
    path.chmod(mode)
    with pytest.raises(ValueError, match="chmod 600"):
        read_key_file(path)


@pytest.mark.parametrize("text", ["", "secret", DIGITS[:-1], DIGITS + "0", "\xff" * 64])
def test_what_is_no_key_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mask.key"
    path.touch(0o600)
    path.write_bytes(text.encode("latin-1"))
    for read in (lambda: read_key_file(path), lambda: from_text(text)):
        with pytest.raises(ValueError, match="^a mask key is 64 hex digits$") as raised:
            read()
        assert raised.value.__suppress_context__


def test_what_is_no_ordinary_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mask.key", 0o600)
    with pytest.raises(ValueError, match="no ordinary file"):
        read_key_file(tmp_path / "mask.key")


def test_a_key_shows_nothing_of_itself() -> None:
    key = from_text(f" {DIGITS}\n")
    shown = f"{key} {key!r} {key.fingerprint} {key.__slots__} {hash(key)}"
    assert not any(DIGITS[place : place + 6] in shown for place in range(16))
    assert str(bytes.fromhex(DIGITS)) not in shown
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_another_key_has_another_fingerprint() -> None:
    assert MaskKey(bytes(32)).fingerprint != MaskKey(bytes(31) + b"\1").fingerprint
    assert MaskKey(bytes(32)) != MaskKey(bytes(31) + b"\1")

"""What ends a stream is told apart: a change that cannot be handed over is no lost connection."""

from __future__ import annotations

import pytest

from syncdata.capture.refusals import NEW_EPOCH_HINT, NEW_SLOT_HINT, replication_error, stream_error
from syncdata.errors import SlotError, SourceConnectionError, SourceSetupError, UnreadableChangeError

CONTEXT = 'slot "s", output plugin "pgoutput", in the change callback, associated LSN 0/1953A10'


@pytest.mark.parametrize(
    "sqlstate",
    ["22021", "22P03", "22P05", "38000", "42883", "53100", "53200", "54000", "58030", "XX000", "XX001"],
)
def test_what_is_wrong_with_a_change_is_no_lost_connection(sqlstate: str) -> None:
    error = stream_error(sqlstate, "why", CONTEXT)
    assert type(error) is UnreadableChangeError
    assert "0/1953A10" in error.message


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("08006", SourceConnectionError),
        ("57P01", SourceConnectionError),
        ("53300", SourceConnectionError),
        ("", SourceConnectionError),
        ("55000", SlotError),
        ("42501", SourceSetupError),
    ],
)
def test_the_other_ends_of_a_stream_are_what_they_were(sqlstate: str, kind: type[Exception]) -> None:
    assert type(stream_error(sqlstate, "why", CONTEXT)) is kind


def test_a_missing_publication_is_told_from_a_missing_slot_in_any_language() -> None:
    missing = stream_error("42704", "Publikation »syncdata« existiert nicht", CONTEXT)
    assert (type(missing), missing.hint) == (SourceSetupError, NEW_SLOT_HINT)
    missing = replication_error("42704", "Replikations-Slot »syncdata_slot« existiert nicht")
    assert (type(missing), missing.hint) == (SlotError, NEW_EPOCH_HINT)


def test_a_message_that_may_hold_a_value_is_named_and_not_shown() -> None:
    error = stream_error("22P02", 'invalid input syntax for type integer: "secret"', "unheard of: secret")
    assert "InvalidTextRepresentation (22P02)" in str(error)
    assert "secret" not in str(error)
    assert "0x81" in str(stream_error("22P05", "byte sequence 0x81", CONTEXT))

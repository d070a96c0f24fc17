"""A production with personal data in thirteen tables, a policy for it, and the search for what got out.

Every original value of a masked or withheld column can be told from all else: a text has `PERSONAL` in it,
a number or a UUID `NUMBER`, and the dates are known one by one. Every value that may travel has `KEPT` in
it: a search that finds nothing can be seen to search.
"""

from __future__ import annotations

import base64
import datetime as dt
import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import zstandard

PERSONAL = "qzxvjkwpfy"
NUMBER = "83197264"
UUID = "83197264-7264-4264-8264"
KEPT = "keptwordhere"
MASK_KEY = "5e" * 16 + "a1" * 16
"""Hexadecimal, as the key file has it."""

WITHHELD_TABLE = "diary"

TABLES = {
    # Masked key, unique column, generated columns (one of them of a masked column), a column nobody named.
    "people": """CREATE TABLE people (
        national_id varchar(64) PRIMARY KEY, email varchar(120) UNIQUE, full_name varchar(90),
        birth_date date, phone text, password text NOT NULL, notes text, city text, nickname text,
        shout text GENERATED ALWAYS AS (upper(full_name)) STORED,
        greeting text GENERATED ALWAYS AS ('dear ' || city) STORED)""",
    # A masked number as key, a foreign key to a masked key.
    "accounts": """CREATE TABLE accounts (
        id bigint PRIMARY KEY, person_id varchar(64) REFERENCES people ON UPDATE CASCADE,
        iban varchar(64) UNIQUE, balance numeric(12,2), remark text)""",
    # A foreign key to a unique column that is masked.
    "clubs": """CREATE TABLE clubs (
        id int PRIMARY KEY, title text, contact varchar(120) REFERENCES people (email) ON UPDATE CASCADE)""",
    # A composite key, of which one column is masked.
    "memberships": """CREATE TABLE memberships (
        person_id varchar(64) REFERENCES people ON UPDATE CASCADE, club_id int REFERENCES clubs, role text,
        PRIMARY KEY (person_id, club_id))""",
    "profiles": """CREATE TABLE profiles (
        person_id varchar(64) PRIMARY KEY REFERENCES people ON UPDATE CASCADE, doc jsonb, raw json)""",
    "tags": "CREATE TABLE tags (id int PRIMARY KEY, emails text[], grid text[], words text[])",
    "letters": "CREATE TABLE letters (id int PRIMARY KEY, body text, story text, is_read boolean)",
    "visits": """CREATE TABLE visits (id int, day date, visitor text, room text, PRIMARY KEY (id, day))
        PARTITION BY RANGE (day);
        CREATE TABLE visits_old PARTITION OF visits FOR VALUES FROM ('2000-01-01') TO ('2020-01-01');
        CREATE TABLE visits_new PARTITION OF visits FOR VALUES FROM ('2020-01-01') TO ('2100-01-01')""",
    "journal": "CREATE TABLE journal (who text, what text); ALTER TABLE journal REPLICA IDENTITY FULL",
    "orders": """CREATE TABLE orders (
        id int PRIMARY KEY, customer varchar(120) REFERENCES people (email) ON UPDATE CASCADE,
        total numeric, label text)""",
    "tokens": """CREATE TABLE tokens (
        id uuid PRIMARY KEY, born date, seen timestamptz, badge bigint, code bytea, note text)""",
    '"Odd ""names"" too"': """CREATE TABLE "Odd ""names"" too" (
        id int PRIMARY KEY, "e""mail" text, "Straße" varchar(200), "back\\slash" text)""",
    WITHHELD_TABLE: "CREATE TABLE diary (id int PRIMARY KEY, entry text)",
}

COLUMNS = r"""
[source.columns.people]
national_id = "token"
email = "email"
full_name = "name"
birth_date = { mask = "shift", by = "national_id", days = 30 }
phone = { mask = "partial", keep_end = 2 }
password = { mask = "fixed", value = "!" }
notes = "null"
city = "keep"
greeting = "keep"
[source.columns.accounts]
id = "permute"
person_id = "token"
iban = "token"
balance = "keep"
remark = "keep"
[source.columns.clubs]
id = "keep"
title = "keep"
contact = "email"
[source.columns.memberships]
person_id = "token"
club_id = "keep"
role = "keep"
[source.columns.profiles]
person_id = "token"
raw = { mask = "json", paths = { "theme" = "keep" }, unnamed = "withhold" }
[source.columns.profiles.doc]
mask = "json"
unnamed = "withhold"
[source.columns.profiles.doc.paths]
theme = "keep"
name = "name"
"contacts[].email" = "email"
"contacts[].kind" = "keep"
[source.columns.tags]
id = "keep"
emails = "email"
grid = "token"
words = "keep"
[source.columns.letters]
id = "keep"
body = "token"
story = "keep"
is_read = "keep"
[source.columns.visits]
id = "keep"
day = "keep"
visitor = "token"
room = "keep"
[source.columns.journal]
who = "token"
what = "keep"
[source.columns.orders]
id = "keep"
customer = "email"
total = "keep"
label = "keep"
[source.columns.tokens]
id = "token"
born = { mask = "shift", by = "id", days = 30 }
seen = { mask = "shift", by = "id", days = 30 }
badge = "permute"
code = "token"
note = "keep"
[source.columns.'"Odd ""names"" too"']
id = "keep"
'e"mail' = "token"
"Straße" = "token"
'back\slash' = "keep"
"""

LARGE = 100_000


@dataclass
class Writer:
    """Makes the statements that fill the tables and change them; no two original values are alike."""

    dates: list[str] = field(default_factory=list)
    originals: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def word(self) -> str:
        self.originals.append(f"{PERSONAL}{next(self._numbers):05d}")
        return self.originals[-1]

    def kept(self) -> str:
        return f"{KEPT}{next(self._numbers):05d}"

    def large(self, marker: str) -> str:
        """Return a text of 100 KB that hardly compresses, with *marker* all over it."""
        parts = (hashlib.sha256(f"{marker}{n}".encode()).hexdigest() for n in range(LARGE // 80))
        return " ".join(f"{marker} {part}" for part in parts)

    def born(self) -> str:
        """Return a date. No two are so near to each other that one could be another's shifted one."""
        date = dt.date(1700, 1, 1) + dt.timedelta(days=67 * len(self.dates))
        self.dates.append(date.isoformat())
        return self.dates[-1]

    def person(self, number: int) -> list[str]:
        """Return the statements of one person in all tables."""
        national, email = f"N-{self.word()}", f"{self.word()}@{PERSONAL}.test"
        uuid = f"{UUID}-{number:012d}"
        word, kept = self.word, self.kept
        contacts = [
            {"kind": kept(), "email": f"{word()}@x.test", word(): word()},
            {"email": [word(), {"deep": word()}], "kind": kept()},
            word(),
        ]
        doc = {
            "theme": kept(),
            "name": word(),
            "contacts": contacts,
            "unruled": {word(): word()},
            word(): [word(), 83197264001 + number],
        }
        raw = f'{{"theme": "{kept()}", "x": "{word()}", "x": "{word()}", "n": 1.50, "{word()}": null}}'
        return [
            "INSERT INTO people (national_id, email, full_name, birth_date, phone, password, notes, city,"
            f" nickname) VALUES ('{national}', '{email}', '{word()} {word()}', '{self.born()}',"
            f" '+49 {NUMBER}{number:04d}', '{word()}', '{word()}', '{kept()}', '{word()}')",
            f"INSERT INTO accounts VALUES ({NUMBER}{number:06d}, '{national}', 'DE{NUMBER}{number:06d}',"
            f" {number}.50, '{kept()}')",
            f"INSERT INTO clubs VALUES ({number}, '{kept()}', '{email}')",
            f"INSERT INTO memberships VALUES ('{national}', {number}, '{kept()}')",
            f"INSERT INTO profiles VALUES ('{national}', {_text(json.dumps(doc))}, {_text(raw)})",
            f"INSERT INTO tags VALUES ({number}, ARRAY['{word()}@a.test', NULL, 'x\"{word()}\\, y'],"
            f" ARRAY[['{word()}', NULL], ['{word()}', '{word()}']], ARRAY['{kept()}'])",
            f"INSERT INTO letters VALUES ({number}, '{self.large(word())}', '{self.large(kept())}', false)",
            f"INSERT INTO visits VALUES ({number}, '{2010 + number % 20}-05-05', '{word()}', '{kept()}')",
            f"INSERT INTO journal VALUES ('{word()}', '{kept()}')",
            f"INSERT INTO orders VALUES ({number}, '{email}', {number}.125, '{kept()}')",
            f"INSERT INTO tokens VALUES ('{uuid}', '{self.born()}', '{self.born()} 10:20:30.123456+02',"
            f" {NUMBER}{number:06d}, convert_to('{word()}', 'UTF8'), '{kept()}')",
            f'INSERT INTO "Odd ""names"" too" VALUES'
            f" ({number}, '{word()}', E'a\\tb\\n{word()}\\\\', '{kept()}')",
            f"INSERT INTO diary VALUES ({number}, '{word()}')",
        ]

    def changes(self) -> list[str]:
        """Return updates, changes of keys, deletes and a TRUNCATE: of the persons 1 to 9."""
        word, kept = self.word, self.kept
        first = "(SELECT min(national_id) FROM people)"
        return [
            f"UPDATE people SET full_name = '{word()}', city = '{kept()}' WHERE national_id = {first}",
            f"UPDATE people SET nickname = '{word()}' WHERE national_id = {first}",
            # The keys themselves, which the foreign keys follow.
            f"UPDATE people SET national_id = 'N-{word()}' WHERE national_id = {first}",
            f"UPDATE people SET email = '{word()}@new.test' WHERE email = (SELECT min(email) FROM people)",
            "INSERT INTO people (national_id, email, full_name, birth_date, password)"
            f" VALUES ('{(alone := word())}', '{word()}@x.test', '{word()}', '{self.born()}', '{word()}')",
            "UPDATE people SET email = NULL, phone = NULL, birth_date = NULL, full_name = NULL"
            f" WHERE national_id = '{alone}'",
            f"UPDATE accounts SET id = id + 500000, remark = '{kept()}'"
            " WHERE id = (SELECT min(id) FROM accounts)",
            f"UPDATE tokens SET id = '{UUID}-999999999999'"
            " WHERE id = (SELECT id FROM tokens ORDER BY id LIMIT 1)",
            "DELETE FROM tokens WHERE id = (SELECT id FROM tokens ORDER BY id LIMIT 1)",
            "DELETE FROM memberships WHERE club_id = 2",
            f"UPDATE journal SET what = '{kept()}' WHERE what = (SELECT min(what) FROM journal)",
            f"UPDATE journal SET who = '{word()}' WHERE what = (SELECT max(what) FROM journal)",
            "DELETE FROM journal WHERE who = (SELECT min(who) FROM journal)",
            # The large values stay as they are: they are absent from the record.
            "UPDATE letters SET is_read = true WHERE id <= 2",
            f"UPDATE letters SET body = '{self.large(word())}' WHERE id = 3",
            "UPDATE letters SET id = id + 100 WHERE id = 4",
            # From one partition into the other.
            f"UPDATE visits SET day = '2040-01-01', visitor = '{word()}' WHERE id = 1",
            f"UPDATE tags SET emails = emails || '{word()}'::text WHERE id = 1",
            "UPDATE tags SET emails = NULL, grid = '{}' WHERE id = 2",
            f"UPDATE profiles SET doc = '[\"{word()}\"]'"
            " WHERE person_id = (SELECT min(person_id) FROM profiles)",
            f"""UPDATE "Odd ""names"" too" SET id = 77, "e""mail" = '{word()}' WHERE id = 1""",
            f"UPDATE diary SET entry = '{word()}'",
            "TRUNCATE orders, diary",
            f"INSERT INTO orders SELECT n, NULL, n, '{kept()}' FROM generate_series(1, 20) n",
            f"INSERT INTO orders VALUES (99, (SELECT max(email) FROM people), 1, '{kept()}')",
            # Many small rows at once, which are encoded together.
            f"INSERT INTO journal SELECT '{word()}' || n, '{kept()}' || n FROM generate_series(1, 40) n",
            f"INSERT INTO accounts SELECT {NUMBER}700000 + n, NULL, '{word()}' || n, n, '{kept()}'"
            " FROM generate_series(1, 40) n",
            "DELETE FROM accounts WHERE balance > 35 AND person_id IS NULL",
        ]


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


# The search


@dataclass(frozen=True)
class Found:
    """An original value, or what gives it away, at a place."""

    place: str
    form: str

    def __str__(self) -> str:
        return f"{self.form} in {self.place}"


class Search:
    """Looks for original values in bytes, in every form in which they might get out.

    *originals*: texts that are looked for also as digests without a key, which anybody can reverse who can
    guess them; *dates* are looked for one by one; *text* is in every original text.
    """

    def __init__(
        self, originals: Iterable[str] = (), dates: Iterable[str] = (), *, text: str = PERSONAL
    ) -> None:
        self._dates = {date.encode() for date in dates}
        self._digests = {digest for text in originals for digest in _digests(text)}
        self._forms = {
            "the text": re.compile(re.escape(text.encode()), re.IGNORECASE),
            "the number": re.compile(NUMBER.encode()),
            "the text backwards": re.compile(text[::-1].encode(), re.IGNORECASE),
            "the number backwards": re.compile(NUMBER[::-1].encode()),
            "the text in hex": re.compile(text.encode().hex().encode(), re.IGNORECASE),
            "the text in upper case in hex": re.compile(text.upper().encode().hex().encode(), re.I),
            "the text in base64": _as_any(_base64_parts(text)),
            "the text in UTF-16": re.compile(text.encode("utf-16-le")),
            "the key": re.compile(MASK_KEY.encode(), re.IGNORECASE),
            "the key as bytes": re.compile(re.escape(bytes.fromhex(MASK_KEY))),
            "the key in base64": re.compile(re.escape(base64.b64encode(bytes.fromhex(MASK_KEY))[:40])),
        }

    def of(self, content: bytes, place: str, *, but: Iterable[str] = ()) -> list[Found]:
        """Return what is found in *content*, without the forms *but*."""
        found = [
            Found(place, form)
            for form, pattern in self._forms.items()
            if form not in but and pattern.search(content)
        ]
        if not self._dates.isdisjoint(re.findall(rb"\d{4}-\d\d-\d\d", content)):
            found.append(Found(place, "the date"))
        runs = re.findall(rb"[0-9a-f]{16,}", content)
        if any(run[:16].decode() in self._digests for run in runs):
            found.append(Found(place, "a digest of the value, without a key"))
        return found

    def of_files(self, *folders: Path, but: Iterable[str] = ()) -> list[Found]:
        """Return what is found in all files below *folders*: in their names, and decompressed."""
        found = []
        for path in files_below(*folders):
            found += self.of(str(path).encode(), f"the name {path}", but=but)
            found += self.of(content_of(path), str(path), but=but)
        return found


def files_below(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def content_of(path: Path) -> bytes:
    """Return the file's content, decompressed; what is there of one that is cut short."""
    content = path.read_bytes()
    if content.startswith(b"\x28\xb5\x2f\xfd"):
        with zstandard.ZstdDecompressor().stream_reader(content, read_across_frames=True) as reader:
            return b"".join(_as_far_as_it_goes(lambda: reader.read(1 << 16)))
    if content.startswith(b"\x1f\x8b"):
        with gzip.open(path) as stream:
            return b"".join(_as_far_as_it_goes(lambda: stream.read(1 << 16)))
    return content


def _as_far_as_it_goes(read: object) -> Iterator[bytes]:
    assert callable(read)
    try:
        while block := read():
            yield block
    except (EOFError, OSError, zstandard.ZstdError):
        return


def _base64_parts(text: str) -> list[bytes]:
    """Return what base64 has of *text*, wherever in the encoded bytes it begins; without the ends, which
    depend on what stands beside it."""
    parts = []
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + text.encode())
        start = (before * 8 + 5) // 6
        parts.append(encoded[start : (before + len(text)) * 8 // 6])
    return parts


def _as_any(parts: Iterable[bytes]) -> re.Pattern[bytes]:
    return re.compile(b"|".join(re.escape(part) for part in parts))


def _digests(text: str) -> Iterator[str]:
    """Yield the first 16 hex digits of what anybody can work out of *text*; also as the only element of an
    array, which is how PostgreSQL keeps the default of a column that was added."""
    for form in (text, "{" + text + "}", '{"' + text + '"}'):
        for name in ("md5", "sha1", "sha256", "sha512", "blake2b", "blake2s"):
            yield hashlib.new(name, form.encode()).hexdigest()[:16]
        yield hashlib.blake2b(form.encode(), digest_size=16).hexdigest()[:16]

"""The documentation names everything that an operator can type, set or meet, and nothing else."""

from __future__ import annotations

import configparser
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from django.core.management import get_commands
from django.dispatch import Signal

from syncdata import signals
from syncdata.archive.backends import BACKENDS, DEFAULT_BACKEND
from syncdata.changes.record import parse_record
from syncdata.conf import SourceConfig, SyncConfig, config_from_toml, source_from_toml
from syncdata.errors import SyncError

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "syncdata"
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md")])
DERIVED = {"config_file", "archive"}  # where the configuration came from, and what many keys make: no keys
COMMANDS = sorted(name for name, app in get_commands().items() if app in ("syncdata", "syncsite"))
ARCHIVE_FIELDS = {
    field.metadata["key"]: field
    for settings in BACKENDS.values()
    for field in fields(settings)  # type: ignore[arg-type]
}
FIELDS = {field.name: field for field in fields(SyncConfig) if field.name not in DERIVED} | ARCHIVE_FIELDS
KEYS = sorted({"archive_backend", *FIELDS})
SOURCE_FIELDS = [field for field in fields(SourceConfig) if field.name not in DERIVED | {"state_dir"}]
# House words that gave way to those of the glossary; no module and no name has them any more.
GIVEN_UP = ("ledger", "doorbell", "shelf", "floor", "books")


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def prose(path: Path) -> str:
    """Return a page's text without its fenced and indented code."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)


def row_of(first_cell: str, name: str) -> str:
    """Return the row of the page *name* whose first cell is *first_cell*, or an empty string."""
    found = re.search(rf"^\| `{re.escape(first_cell)}` \|(.*)$", page(name), re.MULTILINE)
    return found[1] if found else ""


# Commands, keys, codes, signals


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_section(command: str) -> None:
    assert f"\n## {command}\n" in page("commands")


@pytest.mark.parametrize("key", KEYS)
def test_every_configuration_key_has_a_row(key: str) -> None:
    assert row_of(key, "configuration")


@pytest.mark.parametrize("key", sorted(FIELDS))
def test_the_row_of_a_key_tells_its_default(key: str) -> None:
    default = FIELDS[key].default
    if isinstance(default, int | str) and default:
        spelled = str(default).lower() if isinstance(default, bool) else str(default)
        assert spelled in row_of(key, "configuration")


def test_the_row_of_the_archives_backend_tells_its_default_and_the_others() -> None:
    assert all(name in row_of("archive_backend", "configuration") for name in BACKENDS)
    assert f"| `{DEFAULT_BACKEND}` |" in f"|{row_of('archive_backend', 'configuration')}"


@pytest.mark.parametrize("field", SOURCE_FIELDS, ids=lambda field: field.name)
def test_every_key_of_the_source_has_a_row_that_tells_its_default(field: Any) -> None:
    row = row_of(f"source.{field.name}", "configuration")
    assert row
    if isinstance(field.default, int | str):
        assert str(field.default) in row


@pytest.mark.parametrize("code", sorted(SyncError.by_code))
def test_every_error_code_has_a_meaning_and_a_remedy(code: str) -> None:
    meaning, remedy = row_of(code, "errors").strip(" |").split(" | ")
    assert meaning
    assert remedy


def test_every_code_in_the_documentation_exists() -> None:
    for path in PAGES:
        assert set(re.findall(r"SHD_SYN_\d{3}", path.read_text(encoding="utf-8"))) <= set(SyncError.by_code)


@pytest.mark.parametrize("signal", [name for name, it in vars(signals).items() if isinstance(it, Signal)])
def test_every_signal_has_a_row(signal: str) -> None:
    assert row_of(signal, "embedding")


# Examples


def examples(language: str) -> list[Any]:
    """Return the fenced blocks of *language* in all pages, each with the page's name as its id."""
    return [
        pytest.param(text, id=path.stem)
        for path in PAGES
        for text in re.findall(
            rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        )
    ]


@pytest.mark.parametrize("text", examples("toml"))
def test_every_configuration_that_is_shown_is_valid(text: str, tmp_path: Path) -> None:
    values = tomllib.loads(text)
    read = source_from_toml if "source" in values else config_from_toml
    assert read(values, {}, tmp_path / "syncdata.toml")


@pytest.mark.parametrize("line", page("change-files").split("```json\n")[1].split("```")[0].splitlines())
def test_every_record_that_is_shown_can_be_read(line: str) -> None:
    assert parse_record(line.encode()).table == "users"


# The README, the pages and their links


def test_the_readme_is_an_entrance_of_at_most_130_lines() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert "make demo" in text and "make test" in text
    for path in DOCS.glob("*.md"):
        assert f"(docs/{path.name})" in text or path.name in ("index.md", "security.md", "changelog.md")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_resolves(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.is_file(), f"{link} in {path.name}: there is no such file"
        assert not anchor or anchor in anchors(file), f"{link} in {path.name}: there is no such heading"


def anchors(path: Path) -> set[str]:
    """Return what GitHub and MyST both call the headings of a page in links."""
    titles = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_addresses_of_the_package_lead_somewhere() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    links = dict(line.split(" = ") for line in setup["metadata"]["project_urls"].strip().splitlines())
    assert links.keys() == {"Documentation", "Changelog", "Source", "Issues"}
    for address in links.values():
        assert re.match(r"https://", address) or (ROOT / address).exists()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_promised_for_later(path: Path) -> None:
    assert not re.search(r"\b(planned|coming soon|TODO|not yet implemented)\b", prose(path), re.IGNORECASE)


# Architecture and glossary


@pytest.mark.parametrize("name", ["architecture", "glossary"])
def test_every_module_that_a_page_names_is_there(name: str) -> None:
    paths = re.findall(r"`((?:\w+/)*\w+\.py|(?:\w+/)+)`", page(name))
    assert len(paths) > 20
    for path in paths:
        assert any((base / path).exists() for base in (PACKAGE, ROOT)), path


def test_the_layer_rules_are_those_that_are_checked() -> None:
    text = page("architecture")
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = pyproject["tool"]["importlinter"]["contracts"]
    layers = [layer for contract in contracts for layer in contract.get("layers", [])]
    rows = re.findall(r"^\| \d+ \| (.+) \|$", text, re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == [
        {*re.split(r" [|:] ", layer)} for layer in layers
    ]
    for contract in contracts[1:]:
        assert contract["name"].partition(":")[0] in text


def test_every_part_of_syncdata_is_drawn_or_told() -> None:
    told = page("architecture") + (DOCS / "pictures" / "layers.svg").read_text(encoding="utf-8")
    for path in PACKAGE.iterdir():
        if (path.is_dir() and (path / "__init__.py").exists()) or path.suffix == ".py":
            assert re.search(rf"\b{path.stem}\b", told) or path.stem == "__init__", path.stem


def glossary() -> list[tuple[str, str]]:
    """Return (word, the homes of it) for each word of each row."""
    rows = re.findall(r"^\| ([\w ,]+?) \| .+? \| (.+?) \|$", page("glossary"), re.MULTILINE)
    return [(word, homes) for words, homes in rows[1:] for word in words.split(", ")]


@pytest.mark.parametrize(("word", "homes"), glossary(), ids=lambda text: str(text).replace("`", ""))
def test_a_word_of_the_glossary_is_used_in_its_home(word: str, homes: str) -> None:
    spelled = re.escape(word).replace(r"\ ", r"[\s_]?")
    for home in re.findall(r"`([\w/.]+)`", homes):
        path = PACKAGE / home
        texts = [
            file.read_text(encoding="utf-8") for file in (path.rglob("*.py") if path.is_dir() else [path])
        ]
        assert any(re.search(spelled, text, re.IGNORECASE) for text in texts) or word in path.stem, home


@pytest.mark.parametrize("word", GIVEN_UP)
def test_a_word_that_was_given_up_is_not_used(word: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(word, line.replace("math.floor", ""), re.IGNORECASE)
    ]
    assert not found


def test_no_module_is_called_by_a_word_that_was_given_up() -> None:
    assert not [path for path in PACKAGE.rglob("*.py") if path.stem in {*GIVEN_UP, "ahead"}]

"""archive_changes --privacy, --sample and --init, on real servers and as a person types them."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from syncdata.conf import source_from_toml
from syncdata.errors import ConfigError, SourceSetupError
from syncdata.privacy.key import make_key_file
from syncdata.production import ProductionService
from syncdata.provision.privacy_init import Hint
from syncdata.provision.privacy_report import TableReport, format_report, shortcomings
from syncdata.provision.privacy_rows import format_sample
from syncsite.demo.postgres import PostgresServer
from tests import processes
from tests.integration.test_setup import ROOT, Production
from tests.postgres import Database

USERS = """
CREATE DOMAIN address AS varchar(40) CHECK (VALUE ~ '@');
CREATE TABLE users (
    id int PRIMARY KEY, email text UNIQUE NOT NULL, city varchar(5), zip text CHECK (zip LIKE '%-%'),
    contact address, born date, notes text
);
INSERT INTO users VALUES 
    (1, 'jane@real.example', 'Ulm', 'D-1', 'jane@real.example', '1980-02-03', 'likes tea'),
    (2, 'john@real.example', NULL, NULL, NULL, NULL, NULL);
"""
RULES: dict[str, Any] = {
    "id": "keep",
    "email": "email",
    "city": {"mask": "fixed", "value": "Ulm"},
    "zip": {"mask": "fixed", "value": "D-0"},
    "contact": "email",
    "born": {"mask": "shift", "by": "id"},
    "notes": "withhold",
}


@pytest.fixture
def shop(any_postgres: PostgresServer, fresh_database: Callable[..., Database], tmp_path: Path) -> Production:
    """A production with a table of users, a policy and its key, on every server of the run."""
    make_key_file(tmp_path / "mask.key")
    keys = {"privacy": {"key_file": "mask.key"}, "columns": {"users": dict(RULES)}}
    shop = Production(fresh_database(any_postgres), tmp_path, keys)
    shop.execute(*filter(str.strip, USERS.split(";")))
    return shop


def archive_changes(shop: Production, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, on a configuration file with the policy."""
    variables = {name: text for name, text in shop.environment.items() if text}
    path = shop.folder / "syncdata.toml"
    own = shop.keys.get("columns", {}).get("users")
    lines = [line for line in path.read_text().splitlines() if not line.startswith(("privacy", "columns"))]
    if own is not None:
        lines += ["[source.privacy]", 'key_file = "mask.key"', "[source.columns.users]"]
        lines += [f"{name} = {_toml(rule)}" for name, rule in own.items()]
    path.write_text("\n".join(lines))
    return processes.run("manage.py", "archive_changes", *arguments, env=variables)


def _toml(rule: Any) -> str:
    if isinstance(rule, str):
        return json.dumps(rule)
    return "{ " + ", ".join(f"{name} = {json.dumps(value)}" for name, value in rule.items()) + " }"


def report(shop: Production) -> TableReport:
    (found,) = shop.service.report_privacy()
    return found


# --privacy


def test_the_report_says_of_each_column_what_becomes_of_it_and_why(shop: Production) -> None:
    found = report(shop)
    assert {it.column: it.rule for it in found.columns} == {
        **{name: rule if isinstance(rule, str) else rule["mask"] for name, rule in RULES.items()},
    }
    by_name = {it.column: it for it in found.columns}
    assert by_name["id"].keys == ("tells rows apart",) and by_name["email"].keys == ("unique",)
    assert by_name["contact"].type == "public.address"
    assert shortcomings([found]) == []


def test_a_column_without_a_rule_and_a_personal_name_that_is_kept_are_told(shop: Production) -> None:
    shop.execute("ALTER TABLE users ADD phone text")
    assert shortcomings([report(shop)]) == ["users: no rule names phone"]
    shop.keys["columns"]["users"]["phone"] = "keep"
    assert shortcomings([report(shop)]) == []
    assert {it.column: it.looks_like for it in report(shop).columns if it.looks_like} == {
        "phone": "phone number"
    }


def test_a_policy_is_not_complete_where_a_table_is_missing(shop: Production) -> None:
    shop.execute("ALTER TABLE users RENAME TO members")
    assert shortcomings([report(shop)]) == ["users: there is no such table"]
    assert format_report([report(shop)]) == "users\n  problem: there is no such table"


@pytest.mark.parametrize(
    ("column", "rule", "told"),
    [
        ("city", {"mask": "fixed", "value": "too long"}, "city: "),
        ("zip", {"mask": "fixed", "value": "none"}, "zip: the masks break CHECK users_zip_check"),
        ("contact", {"mask": "fixed", "value": "nobody"}, "contact: what fixed makes is no public.address"),
    ],
)
@pytest.mark.parametrize("rows", ["with rows", "empty"])
def test_what_the_masks_make_is_tried_against_types_lengths_domains_and_checks(
    shop: Production, column: str, rule: object, told: str, rows: str
) -> None:
    if rows == "empty":
        shop.execute("TRUNCATE users")
    shop.keys["columns"]["users"][column] = rule
    problems = report(shop).problems
    assert any(problem.startswith(told) for problem in problems), problems
    assert not any("real.example" in problem or "nobody" in problem for problem in problems)


def test_a_report_needs_no_key_and_changes_nothing(shop: Production) -> None:
    (shop.folder / "mask.key").unlink()
    before = shop.catalog()
    assert report(shop).problems == ()
    assert shop.catalog() == before


def test_the_report_names_a_condition_on_rows_that_the_server_refuses(shop: Production) -> None:
    shop.keys["rows"] = {"users": "tenant = 3"}
    assert "tenant" in " ".join(report(shop).problems)
    shop.keys["rows"] = {"users": "id > 0"}
    assert report(shop).problems == ()


def test_the_command_ends_with_1_until_every_column_has_a_rule(shop: Production) -> None:
    done = archive_changes(shop, "--privacy")
    assert done.returncode == 0, done.stderr
    assert "email    text" in done.stdout and "real.example" not in done.stdout + done.stderr
    del shop.keys["columns"]["users"]["notes"]
    done = archive_changes(shop, "--privacy", "--json")
    assert done.returncode == 1 and "users: no rule names notes" in done.stderr
    (table,) = json.loads(done.stdout)
    assert table["table"] == "users" and len(table["columns"]) == 7
    del shop.keys["columns"], shop.keys["privacy"]
    done = archive_changes(shop, "--privacy")
    assert done.returncode == 1 and "there is no privacy policy" in done.stderr


# --sample


def test_a_sample_shows_rows_before_and_after(shop: Production) -> None:
    (sample,) = shop.service.sample(1, ["users"])
    text = format_sample(sample)
    assert "email: 'jane@real.example' -> '" in text and "@example.invalid'" in text
    assert "notes: 'likes tea' (withheld)" in text and "id: '1' (as it is)" in text
    (shop.folder / "mask.key").unlink()
    with pytest.raises(ConfigError, match=r"mask\.key is not there"):
        shop.service.sample(1, [])
    assert "mask-key" in [problem.kind for problem in shop.service.get_status().problems]


def test_a_sample_is_for_a_terminal_and_its_control_characters_are_not(shop: Production) -> None:
    shop.execute("UPDATE users SET notes = E'\\x1b[2J'")
    done = archive_changes(shop, "--sample", "1")
    assert done.returncode == 2 and "real.example" not in done.stdout + done.stderr
    done = archive_changes(shop, "--sample", "1", "users", "--yes")
    assert done.returncode == 0 and "@real.example' -> " in done.stdout
    assert "\x1b" not in done.stdout
    assert archive_changes(shop, "--sample", "users", "--yes").returncode == 2


def test_a_sample_of_a_table_that_is_not_there_is_an_error(shop: Production) -> None:
    shop.execute("ALTER TABLE users RENAME TO people")
    with pytest.raises(SourceSetupError, match="there is no such table in production: users"):
        shop.service.sample(1, ["users"])


def test_a_check_whose_function_raises_an_error_of_its_own_is_a_finding(shop: Production) -> None:
    shop.execute(
        "CREATE FUNCTION is_known(text) RETURNS bool LANGUAGE plpgsql AS"
        " $$ BEGIN IF $1 LIKE '%tea%' THEN RETURN true; END IF; RAISE 'not known: %', $1; END $$",
        "DELETE FROM users WHERE notes IS NULL",
        "ALTER TABLE users ADD CONSTRAINT is_known CHECK (is_known(notes))",
    )
    shop.keys["columns"]["users"]["notes"] = "token"
    done = archive_changes(shop, "--privacy")
    assert done.returncode == 1 and "the masks break" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr and "likes tea" not in done.stdout + done.stderr


def test_a_sample_is_shown_on_a_terminal(shop: Production) -> None:
    archive_changes(shop, "--privacy")  # writes the configuration
    controller, terminal = pty.openpty()
    variables = os.environ | {"DATA_SYNC_CONFIG": str(shop.folder / "syncdata.toml")}
    command = [sys.executable, "manage.py", "archive_changes", "--sample", "1"]
    done = subprocess.run(command, cwd=ROOT, env=variables, stdout=terminal, check=False, timeout=120)
    os.close(terminal)
    assert done.returncode == 0
    assert b"@real.example" in os.read(controller, 4096)
    os.close(controller)


# --init


def test_init_makes_a_key_and_a_policy_that_holds(shop: Production) -> None:
    (shop.folder / "mask.key").unlink()
    del shop.keys["columns"], shop.keys["privacy"]
    done = archive_changes(shop, "--init", str(shop.folder / "policy.toml"))
    assert done.returncode == 0, done.stderr
    key = shop.folder / "mask.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert key.read_text().strip() not in done.stdout + done.stderr
    text = (shop.folder / "policy.toml").read_text()
    assert "real.example" not in text and 'email = "email"' in text
    assert 'zip = "withhold"' in text, "its CHECK refuses a token"
    shop.keys |= tomllib.loads(text)["source"]
    assert shortcomings([report(shop)]) == []
    assert shop.setup()[0] == 'created publication "syncdata" for users'
    again = archive_changes(shop, "--init", str(shop.folder / "policy.toml"))
    assert "there is a policy already" in again.stderr
    del shop.keys["columns"], shop.keys["privacy"]
    before = key.read_text()
    assert archive_changes(shop, "--init", str(shop.folder / "policy.toml")).returncode == 1
    assert (key.read_text(), (shop.folder / "policy.toml").read_text()) == (before, text)


def test_init_takes_labels_comments_and_fields_of_models_before_names(shop: Production) -> None:
    with shop.database.connect(autocommit=True) as connection:
        connection.execute("SET allow_system_table_mods = on")
        connection.execute(
            "INSERT INTO pg_seclabel SELECT attrelid, 'pg_class'::regclass, attnum, 'anon',"
            " 'MASKED WITH FUNCTION anon.partial(notes,2,$$***$$,1)'"
            " FROM pg_attribute WHERE attrelid = 'users'::regclass AND attname = 'notes'"
        )
    shop.execute("COMMENT ON COLUMN users.zip IS 'MASKED WITH VALUE $$D-0$$'")
    del shop.keys["columns"], shop.keys["privacy"]
    models = {
        shop.config.tables[0]: {"city": Hint("null", "a field"), "contact": Hint("withhold", "a field")}
    }
    text = shop.service.init_privacy(models).text
    rules = tomllib.loads(text)["source"]["columns"]["users"]
    assert rules["notes"] == {"mask": "partial", "keep_start": 2, "keep_end": 1}
    assert rules["zip"] == {"mask": "fixed", "value": "D-0"}
    assert (rules["city"], rules["contact"], rules["id"]) == ("null", "withhold", "keep")


def test_a_column_whose_values_are_all_in_a_check_is_kept_and_others_that_no_mask_fits_are_withheld(
    shop: Production,
) -> None:
    shop.execute(
        "ALTER TABLE users ADD state varchar(9) NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'old')),"
        " ADD code text NOT NULL DEFAULT 'A-1' CHECK (code LIKE 'A-%')"
    )
    del shop.keys["columns"], shop.keys["privacy"]
    shop.keys |= tomllib.loads(shop.service.init_privacy({}).text)["source"]
    rules = shop.keys["columns"]["users"]
    assert (rules["state"], rules["code"]) == ("keep", "withhold")
    assert shortcomings([report(shop)]) == []


def test_a_hint_that_cannot_hold_gives_way_to_the_suggestion(shop: Production) -> None:
    del shop.keys["columns"], shop.keys["privacy"]
    models = {shop.config.tables[0]: {"id": Hint("null", "a field"), "email": Hint("null", "a field")}}
    rules = tomllib.loads(shop.service.init_privacy(models).text)["source"]["columns"]["users"]
    assert (rules["id"], rules["email"]) == ("keep", "email")


def test_a_policy_of_odd_names_can_be_read_again(shop: Production) -> None:
    shop.execute('CREATE TABLE "Odd ""x"".y" ("Id \\ %" int PRIMARY KEY, "e\nmail" text)')
    shop.keys["tables"] = ['"Odd ""x"".y"', "users"]
    del shop.keys["columns"], shop.keys["privacy"]
    text = shop.service.init_privacy({}).text
    shop.keys |= tomllib.loads(text)["source"]
    assert shortcomings(shop.service.report_privacy()) == []
    values = {"archive_backend": "local", "archive_dir": "/x", "source": shop.keys}
    assert ProductionService(source_from_toml(values, {}, shop.folder / "f.toml")).has_policy

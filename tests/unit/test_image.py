"""The container image and compose.yaml: what they copy, run, set and mount is there.

Builds no image: most machines that run the tests have no engine to build it.
"""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import CommandError, get_commands, load_command_class
from gunicorn.config import Config

from syncdata.conf import (
    CONFIG_VARIABLE,
    NEW_PASSWORD_VARIABLE,
    load_config_file,
    load_source_config,
)
from syncdata.confkeys import FILE_KEYS, SOURCE_KEYS
from syncsite.demo import shop

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs" / "containers.md").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "syncdata"}
DATABASES = SERVICES.keys() - OURS.keys()
VARIABLES = {key.variable for keys in (FILE_KEYS, SOURCE_KEYS) for key in keys.values() if key.variable}
STATE = "/var/lib/syncdata"


def _instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.strip().partition(" ") for line in lines) if word]


INSTRUCTIONS = _instructions()
LAST_STAGE = INSTRUCTIONS[max(at for at, (word, _) in enumerate(INSTRUCTIONS) if word == "FROM") :]
COPIED = [
    source
    for word, rest in INSTRUCTIONS
    if word == "COPY" and not rest.startswith("--from=")
    for source in rest.split()[:-1]
]


def _exec_form(word: str) -> list[str]:
    (value,) = [rest for found, rest in LAST_STAGE if found == word]
    arguments: list[str] = json.loads(value[value.index("[") :])
    return arguments


def _image_variables() -> dict[str, str]:
    pairs = [shlex.split(rest) for word, rest in LAST_STAGE if word == "ENV"]
    return dict(pair.split("=", 1) for pairs_of_one in pairs for pair in pairs_of_one)


def _commands() -> list[Any]:
    """Return each command line that image and compose.yaml start: everything that runs in our image."""
    entrypoint = _exec_form("ENTRYPOINT")
    found = {"image": entrypoint + _exec_form("CMD"), "image's health": _exec_form("HEALTHCHECK")}
    for name, service in OURS.items():
        found[name] = service.get("entrypoint", entrypoint) + service.get("command", _exec_form("CMD"))
        if test := service.get("healthcheck", {}).get("test"):
            assert test[0] == "CMD"
            found[f"{name}'s health"] = test[1:]
    return [pytest.param(line, id=name) for name, line in found.items()]


def _documented_commands() -> list[Any]:
    """Return what the documentation has ``docker compose`` run in a service, as ``(service, arguments)``."""
    lines = re.findall(r"^docker compose (?:exec|run --rm)(?: -T)? (.+?)(?: +#.*)?$", DOCS, re.MULTILINE)
    assert lines
    return [pytest.param(*line.split(maxsplit=1), id=line) for line in lines]


def _parse(line: list[str]) -> None:
    """Parse it as the command itself would; its parser ends the process where it does not know an option."""
    if line[:2] == ["python", "manage.py"]:
        _, _, command, *arguments = line
        app = get_commands()[command]
        assert isinstance(app, str)
        load_command_class(app, command).create_parser("manage.py", command).parse_args(arguments)
    elif line[:2] == ["python", "-m"]:
        assert line[2] == shop.__name__
        shop._parser().parse_args(line[3:])
    elif line[:2] == ["python", "-c"]:
        compile(line[2], "healthcheck", "exec")
    else:
        assert line[:2] == ["gunicorn", "syncsite.wsgi"]
        Config().parser().parse_args(line[1:])


def is_ignored(path: str) -> bool:
    """Tell whether .dockerignore leaves *path* out: the last pattern that meets it, or a parent, decides."""
    ignored = False
    parents = [path, *(str(parent) for parent in Path(path).parents)][:-1]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        if pattern.startswith("**/"):
            is_met = any(fnmatch.fnmatchcase(Path(it).name, pattern[3:]) for it in parents)
        else:
            is_met = any("/" not in it and fnmatch.fnmatchcase(it, pattern) for it in parents)
        if is_met:
            ignored = not line.startswith("!")
    return ignored


# The image


@pytest.mark.parametrize("source", COPIED)
def test_what_the_image_copies_is_there_and_not_ignored(source: str) -> None:
    path = ROOT / source
    assert path.exists()
    assert not is_ignored(source)
    if path.is_dir():
        assert any(not is_ignored(str(file.relative_to(ROOT))) for file in path.rglob("*.*"))


@pytest.mark.parametrize(
    "path",
    [
        *(
            ".env",
            ".git/config",
            "syncdata.toml",
            ".syncdata_secret_key",
            ".venv/bin/python",
            ".demo/local.toml",
        ),
        *(
            "id_ed25519",
            "syncdata/.syncdata_state.json",
            "syncsite/__pycache__/settings.pyc",
            "tests/keys.py",
        ),
    ],
)
def test_secrets_and_what_is_not_needed_stay_out_of_the_image(path: str) -> None:
    assert is_ignored(path)


def test_the_package_that_the_image_installs_is_complete() -> None:
    """What setup.cfg reads, and what the site is."""
    assert {"pyproject.toml", "setup.cfg", "README.md", "LICENSE", "syncdata"} <= set(COPIED)
    assert {"manage.py", "syncsite", "templates"} <= set(COPIED)


def test_the_extras_that_the_image_installs_are_declared() -> None:
    (extras,) = re.findall(r"pip install '\.\[([\w,]+)\]'", str(INSTRUCTIONS))
    declared = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    assert all(re.search(rf"^{extra} =$", declared, re.MULTILINE) for extra in extras.split(","))


def test_the_image_is_not_roots_and_ends_in_order() -> None:
    found = dict(LAST_STAGE)
    user = found["USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert found["STOPSIGNAL"] == "SIGTERM"
    assert _exec_form("VOLUME") == [STATE]
    # Nothing runs as root after the change of user.
    words = [word for word, _ in LAST_STAGE]
    assert "RUN" not in words[words.index("USER") :] and words.count("USER") == 1


def test_the_configuration_and_temporary_files_are_in_the_volume() -> None:
    variables = _image_variables()
    assert variables[CONFIG_VARIABLE] == f"{STATE}/syncdata.toml"
    assert variables["TMPDIR"].startswith(f"{STATE}/")
    assert any(word == "RUN" and f"-m 700 {STATE} {variables['TMPDIR']}" in rest for word, rest in LAST_STAGE)


# The commands


@pytest.mark.parametrize("line", _commands())
def test_a_command_and_its_options_are_there(line: list[str]) -> None:
    _parse(line)


@pytest.mark.parametrize(("service", "arguments"), _documented_commands())
def test_a_documented_command_and_its_service_are_there(service: str, arguments: str) -> None:
    assert service in SERVICES
    line = shlex.split(arguments)
    _parse(line if line[0] == "python" else [*OURS[service].get("entrypoint", []), *line])


@pytest.mark.parametrize(
    "line",
    [["python", "manage.py", "syncdata_status", "--chekc"], ["gunicorn", "syncsite.wsgi", "--bnd"], ["sh"]],
)
def test_a_command_that_is_not_there_is_found(line: list[str]) -> None:
    with pytest.raises((SystemExit, CommandError, AssertionError)):
        _parse(line)


def test_each_side_has_its_health_check() -> None:
    assert _exec_form("HEALTHCHECK")[2:] == ["syncdata_status", "--check"]
    assert "healthcheck" not in SERVICES["daemon"]
    assert SERVICES["archiver"]["healthcheck"]["test"][3:] == ["archive_changes", "--status"]


# Variables, secrets, rights


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_variable_is_one_that_somebody_reads(name: str) -> None:
    site = set(re.findall(r"^([A-Z_]+) {2,}", (ROOT / "syncsite/settings.py").read_text(), re.MULTILINE))
    known = VARIABLES | site | {CONFIG_VARIABLE, NEW_PASSWORD_VARIABLE, "PGPASSWORD"}
    of_postgres = {"POSTGRES_DB", "POSTGRES_PASSWORD"}
    variables = set(SERVICES[name].get("environment", {}))
    assert variables <= (of_postgres if name in DATABASES else known)
    assert set(_image_variables()) <= known | {
        "PATH",
        "TMPDIR",
        "PYTHONUNBUFFERED",
        "PYTHONDONTWRITEBYTECODE",
    }


def test_no_password_is_written_down() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if "PASSWORD" in variable:
                # Without a default: compose refuses to start where it is not set.
                assert value.startswith("${DEMO_PASSWORD:?"), name
    assert not [name for name in _image_variables() if re.search("PASSWORD|SECRET|KEY", name)]


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_service_of_ours_may_do_little(name: str) -> None:
    service = OURS[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"] == "1g"
    assert not service.keys() & {"user", "privileged", "network_mode", "pid"}


def test_the_admin_listens_on_this_machine_alone() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:8000:8000"]


def test_the_sides_share_the_archive_and_nothing_else() -> None:
    """Which the local side may only read. The shop is no side, and sees both databases."""
    sides: dict[str, set[str]] = {"production": set(), "local": set()}
    for name, service in SERVICES.items():
        if name == "shop":
            continue
        (network,) = service["networks"]
        volumes = [volume.split(":") for volume in service["volumes"]]
        sides[network] |= {source for source, *_ in volumes}
        if network == "local":
            assert all(rest == ["/srv/archive", "ro"] for source, *rest in volumes if source == "archive")
    assert sides["production"] & sides["local"] == {"archive"}
    assert sides["production"] | sides["local"] == {*COMPOSE["volumes"], *_mounted_files()}


def test_what_a_service_waits_for_is_there_and_comes_to_that() -> None:
    for service in SERVICES.values():
        for name, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "test" in SERVICES[name]["healthcheck"]
            else:
                assert how["condition"] == "service_completed_successfully"
                assert "restart" not in SERVICES[name]


# The configuration


def _mounted_files() -> set[str]:
    volumes = [volume.split(":") for service in OURS.values() for volume in service.get("volumes", [])]
    return {source for source, *_ in volumes if source.startswith("./")}


def test_the_configuration_of_each_side_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    production, local = sorted(_mounted_files(), reverse=True)
    monkeypatch.setenv(CONFIG_VARIABLE, str(ROOT / production))
    source = load_source_config()
    monkeypatch.setenv(CONFIG_VARIABLE, str(ROOT / local))
    target = load_config_file()
    assert {source.pg_host, target.pg_host} == DATABASES
    assert source.pg_user in SERVICES["production-setup"]["command"]
    assert "wal_level=logical" in SERVICES[source.pg_host]["command"]
    assert f"host={source.pg_host} " in shop.PRODUCTION and f"host={target.pg_host} " in shop.LOCAL
    assert source.pg_password is None and target.pg_password is None

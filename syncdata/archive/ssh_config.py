"""What ``~/.ssh/config`` says about a host, read as ssh reads it (ssh_config(5)).

Knows the format, patterns, ``Include`` and ``Match``; connects to nothing, and runs nothing: ``Match exec``
is never asked. paramiko's own reader knows no ``Include``, takes conditions that it does not know for true,
and ``[`` for a pattern.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

from syncdata.archive.known_hosts import matches_list
from syncdata.errors import ArchiveConnectionError

_MOST_INCLUDES = 16
_NONE = "none"
# Whose value is the rest of the line, quotes and all.
_WHOLE_LINE = {"proxycommand", "proxyjump", "match"}
_SEVERAL = {"identityfile"}
_SEVERAL_WORDS = {"userknownhostsfile", "globalknownhostsfile"}
_keyword = re.compile(r'"?([A-Za-z0-9]+)"?(?:[ \t\r]*=[ \t\r]*|[ \t\r]+|$)').match
_ONE = {
    "hostname",
    "port",
    "user",
    "identitiesonly",
    "userknownhostsfile",
    "globalknownhostsfile",
    "hostkeyalias",
    "connecttimeout",
    "proxycommand",
    "proxyjump",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """This machine and who is logged in, which a file may refer to."""

    user: str
    home: Path | None
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Jump:
    """One host on the way, as it is written: an alias, perhaps with user and port."""

    host: str
    user: str | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """What counts for one host. None: the file does not say. *warnings* are for the operator's log."""

    hostname: str
    port: int | None = None
    user: str | None = None
    identity_files: tuple[Path, ...] | None = None
    identities_only: bool = False
    known_hosts: tuple[Path, ...] | None = None
    system_known_hosts: tuple[Path, ...] | None = None
    key_alias: str | None = None
    connect_timeout_s: float | None = None
    proxy_command: str | None = None
    jumps: tuple[Jump, ...] = ()
    warnings: tuple[str, ...] = ()


def look_up(
    host: str,
    files: tuple[Path, ...],
    here: Here,
    *,
    user: str | None = None,
    port: int | None = None,
) -> HostConfig:
    """Return what *files*, in their order, say about *host*: the first value of each counts.

    *user* and *port*, where they are given, count before the files. A file that is missing says nothing.
    Raises ArchiveConnectionError, with file and line, for what ssh would refuse.
    """
    reading = _Reading(host, here)
    if user is not None:
        reading.values["user"] = [user]
    if port is not None:
        reading.values["port"] = [str(port)]
    reading.read_all(files)
    if reading.has_final:
        reading.is_final = True
        reading.read_all(files)
    return reading.finish()


def parse_jumps(text: str) -> tuple[Jump, ...]:
    """Return the hosts of a ProxyJump, first hop first; none for ``none``. Raises ValueError."""
    if text.strip().lower() == _NONE:
        return ()
    return tuple(_parse_jump(part.strip()) for part in text.split(","))


@dataclass
class _Reading:
    """The values so far. ``places`` has the file and line of each, for messages."""

    host: str
    here: Here
    values: dict[str, list[str]] = field(default_factory=dict)
    places: dict[str, tuple[str, int]] = field(default_factory=dict)
    warnings: dict[str, None] = field(default_factory=dict)
    has_final: bool = False
    is_final: bool = False

    def read_all(self, files: tuple[Path, ...]) -> None:
        for path in files:
            self._read(path, is_active=True, is_included=False, depth=0)

    def _read(self, path: Path, *, is_active: bool, is_included: bool, depth: int) -> None:
        can_match = is_active
        for number, keyword, rest in self._lines(path, is_included=is_included):
            try:
                if keyword == "host":
                    is_active = matches_list(_patterns(rest), self.host) and can_match
                elif keyword == "match":
                    is_active = self._matches(rest, can_match, f"{path}:{number}")
                elif keyword == "include":
                    for included in self._included(rest, path):
                        if depth == _MOST_INCLUDES:
                            raise ValueError("too many files include each other")
                        self._read(included, is_active=is_active, is_included=True, depth=depth + 1)
                elif is_active:
                    self._take(keyword, rest, (str(path), number))
            except ValueError as error:
                raise _broken(str(error), str(path), number) from error

    def _lines(self, path: Path, *, is_included: bool) -> Iterator[tuple[int, str, str]]:
        """Yield number, keyword in small letters, and the rest, of the lines that say something."""
        try:
            # Others who may write here choose where we connect to, and may run commands as us.
            status = path.stat()
            if not stat.S_ISREG(status.st_mode) and str(path) != os.devnull:
                raise _broken("the SSH configuration is no file", str(path))
            if self._is_of_others(path, status):
                raise _broken("others than you and root may write the SSH configuration", str(path))
            text = path.read_bytes().decode("utf-8", "surrogateescape")
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            if is_included:
                return  # As ssh does: a directory of snippets may have some that are not ours to read.
            raise _broken(f"the SSH configuration cannot be read: {error.strerror}", str(path)) from error
        # Not splitlines() or strip() alone: they know more ends of a line and more blanks than ssh, so that a
        # comment with a form feed in it would become a line that counts.
        for number, line in enumerate(text.split("\n"), 1):
            stripped = line.rstrip(" \t\r\f").lstrip(" \t\r")
            if stripped and not stripped.startswith("#"):
                keyword = _keyword(stripped)
                if keyword is None or "\0" in stripped:
                    raise _broken("the line does not begin with a keyword, or holds a NUL", str(path), number)
                yield number, keyword[1].lower(), stripped[keyword.end() :]

    def _is_of_others(self, path: Path, status: os.stat_result) -> bool:
        if path.is_relative_to("/etc/ssh") or str(path) == os.devnull:
            return False
        return bool(status.st_mode & 0o022) or status.st_uid not in (0, os.getuid())

    def _included(self, rest: str, path: Path) -> Iterator[Path]:
        for pattern in _words(rest):
            expanded = self._expand_home(pattern)
            is_of_the_system = path.is_relative_to("/etc/ssh")
            folder = Path("/etc/ssh") if is_of_the_system else (self.here.home or Path("/")) / ".ssh"
            yield from map(Path, sorted(glob(str(folder / expanded))))

    def _take(self, keyword: str, rest: str, place: tuple[str, int]) -> None:
        if keyword not in _ONE | _SEVERAL:
            return
        words = [rest.strip()] if keyword in _WHOLE_LINE else _words(rest)
        if not words or not words[0]:
            raise ValueError(f"{keyword} has no value")
        if len(words) > 1 and keyword not in _SEVERAL_WORDS:
            raise ValueError(f"{keyword} has more than one value")
        # Whichever of the two is named first counts.
        if keyword in ("proxyjump", "proxycommand") and {"proxyjump", "proxycommand"} & self.values.keys():
            return
        if keyword in _SEVERAL:
            known = self.values.setdefault(keyword, [])
            known += [word for word in words if word not in known]
        elif keyword not in self.values:
            self.values[keyword] = words
            self.places[keyword] = place
            self._check(keyword, words[0])

    def _check(self, keyword: str, value: str) -> None:
        if keyword == "port":
            _parse_port(value)
        elif keyword == "connecttimeout":
            _parse_time(value)
        elif keyword == "identitiesonly":
            _parse_flag(value)
        elif keyword == "proxyjump":
            parse_jumps(value)

    def _matches(self, rest: str, is_active: bool, place: str) -> bool:
        """Tell whether a Match line's conditions all hold; what we do not know never does."""
        words = _words(rest)
        if not words:
            raise ValueError("Match has no condition")
        while words:
            condition = words.pop(0)
            is_negated, name = condition.startswith("!"), condition.lstrip("!").lower()
            name, has_value, _ = name.partition("=")
            if name in ("all", "canonical", "final"):
                self.has_final |= name == "final" and is_active
                holds: bool | None = {"all": True, "canonical": False, "final": self.is_final}[name]
            elif not has_value and not words:
                raise ValueError(f"Match {name} has no value")
            else:
                holds = self._holds(name, condition.partition("=")[2] if has_value else words.pop(0))
            if holds is None:
                if is_active:
                    self.warnings[f"{place}: Match {name} is not followed, and counts as not matching"] = None
                is_active = False
            elif holds == is_negated:
                is_active = False
        return is_active

    def _holds(self, name: str, value: str) -> bool | None:
        patterns = value.split(",")
        user = self.values.get("user", [self.here.user])[0]
        texts = {
            "host": self._hostname(),
            "originalhost": self.host,
            "user": user,
            "localuser": self.here.user,
        }
        if name not in texts:
            return None
        if name in ("host", "originalhost"):
            return matches_list(value.lower().split(","), texts[name].lower())
        return matches_list(patterns, texts[name])

    def _hostname(self) -> str:
        named = self.values.get("hostname", ["%h"])[0]
        return _expand(named, {"h": self.host})

    def finish(self) -> HostConfig:
        try:
            hostname = self._hostname().lower()
            port = _parse_port(self.values["port"][0]) if "port" in self.values else None
            user = self.values.get("user", [None])[0]
            tokens = self._tokens(hostname, port or 22, user or self.here.user)
            alias = self._one("hostkeyalias")
            timeout = self._one("connecttimeout")
            return HostConfig(
                hostname=hostname,
                port=port,
                user=user,
                identity_files=self._paths("identityfile", tokens),
                identities_only=_parse_flag(self.values.get("identitiesonly", ["no"])[0]),
                known_hosts=self._paths("userknownhostsfile", tokens),
                system_known_hosts=self._paths("globalknownhostsfile", tokens),
                key_alias=alias,
                connect_timeout_s=_parse_time(timeout) if timeout else None,
                proxy_command=_expand(command, tokens) if (command := self._one("proxycommand")) else None,
                jumps=parse_jumps(_expand(jump, tokens)) if (jump := self._one("proxyjump")) else (),
                warnings=tuple(self.warnings),
            )
        except ValueError as error:
            raise ArchiveConnectionError(
                f"the SSH configuration of {self.host} is wrong: {error}",
                hint="see what ssh takes from it: ssh -G HOST",
            ) from error

    def _one(self, keyword: str) -> str | None:
        value = self.values.get(keyword, [_NONE])[0]
        return None if value.lower() == _NONE else value

    def _paths(self, keyword: str, tokens: Mapping[str, str]) -> tuple[Path, ...] | None:
        """Return the files that are named; ``none`` is that there are none."""
        if keyword not in self.values:
            return None
        named = [value for value in self.values[keyword] if value.lower() != _NONE]
        return tuple(Path(_expand(self._expand_home(value), tokens, variables=True)) for value in named)

    def _expand_home(self, path: str) -> str:
        if not path.startswith("~"):
            return path
        if path == "~" or path.startswith("~/"):
            return f"{self.here.home or ''}{path[1:]}"
        return os.path.expanduser(path)

    def _tokens(self, hostname: str, port: int, user: str) -> dict[str, str]:
        local = self.here.host
        jump = self._one("proxyjump") or ""
        whole = f"{local}{hostname}{port}{user}{jump if jump else ''}"
        return {
            "C": hashlib.sha1(whole.encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest(),
            "d": str(self.here.home or ""),
            "h": hostname,
            "i": str(os.getuid()),
            "k": self._one("hostkeyalias") or self.host,
            "L": local.partition(".")[0],
            "l": local,
            "n": self.host,
            "p": str(port),
            "r": user,
            "u": self.here.user,
        }


def _broken(message: str, file: str, line: int | None = None) -> ArchiveConnectionError:
    return ArchiveConnectionError(
        message,
        hint="mend it, name another file with archive_ssh_config, or set that to none",
        file=file,
        line=line,
    )


def _patterns(text: str) -> list[str]:
    patterns = _words(text)
    if not patterns:
        raise ValueError("Host has no pattern")
    return patterns


def _words(text: str) -> list[str]:
    """Return the words of a line: quotes hold blanks together, ``#`` begins a comment."""
    words, position = [], 0
    while position < len(text):
        if text[position] in " \t":
            position += 1
            continue
        if text[position] == "#":
            break
        word, position = _word(text, position)
        words.append(word)
    return words


def _word(text: str, position: int) -> tuple[str, int]:
    word, quote = "", ""
    while position < len(text):
        char, following = text[position], text[position + 1 : position + 2]
        if char == "\\" and following and following in ("\"'\\" if quote else "\"'\\ "):
            word += following
            position += 1
        elif not quote and char in " \t":
            break
        elif not quote and char in "\"'":
            quote = char
        elif char == quote:
            quote = ""
        else:
            word += char
        position += 1
    if quote:
        raise ValueError("a quote is not closed")
    return word, position


def _expand(text: str, tokens: Mapping[str, str], *, variables: bool = False) -> str:
    def replace(found: re.Match[str]) -> str:
        token = found[1]
        if token == "%":  # noqa: S105 - no password
            return "%"
        if token not in tokens:
            raise ValueError(f"%{token} is not known here")
        return tokens[token]

    def variable(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise ValueError(f"the environment has no {found[1]}")
        return os.environ[found[1]]

    expanded = re.sub(r"\$\{(\w+)\}", variable, text) if variables else text
    return re.sub(r"%(.?)", replace, expanded)


def _parse_jump(text: str) -> Jump:
    found = re.fullmatch(
        r"(?:ssh://)?(?:(?P<user>[^@]+)@)?(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:/]+))(?::(?P<port>\d+))?/?", text
    )
    if found is None:
        raise ValueError("ProxyJump must be [user@]host[:port], several with commas between them")
    host = found["six"] or found["host"]
    return Jump(host=host, user=found["user"], port=_parse_port(found["port"]) if found["port"] else None)


def _parse_port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise ValueError("Port must be a number from 1 to 65535")
    return int(text)


def _parse_flag(text: str) -> bool:
    if text.lower() not in ("yes", "true", "no", "false"):
        raise ValueError("IdentitiesOnly must be yes or no")
    return text.lower() in ("yes", "true")


def _parse_time(text: str) -> float | None:
    if text.lower() == _NONE:
        return None
    if not re.fullmatch(r"(?:[0-9]{1,9}[sSmMhHdDwW]?)+", text):
        raise ValueError("ConnectTimeout must be a time, such as 30 or 1m")
    seconds = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
    parts = re.findall(r"([0-9]+)([a-zA-Z]?)", text)
    return float(sum(int(number) * seconds[unit.lower()] for number, unit in parts)) or None

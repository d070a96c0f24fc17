"""SSH configuration files, each read by ``ssh -G`` and by us: what counts for a host must be the same."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
from pathlib import Path

import pytest

from syncdata.archive.known_hosts import name_of
from syncdata.archive.login import home
from syncdata.archive.ssh_config import Here, HostConfig, Jump, look_up, parse_jumps
from syncdata.errors import ArchiveConnectionError

HERE = Here(user=getpass.getuser(), home=home(), host=socket.gethostname())

# Each: the file, with {folder} for where it lies, and the hosts to ask for.
TABLE = {
    "nothing": ("", ["backup"]),
    "an alias": ("Host backup\n  HostName 10.0.0.7\n  Port 2222\n  User bob\n", ["backup", "other"]),
    "equals signs and quotes": (
        'Host="backup"\n\tHostName = "ten.example.com"\nPort=2222\n',
        ["backup", "other"],
    ),
    "keywords in any letters": ("HOST backup\nhostNAME ten\npORT 2222\n", ["backup"]),
    "the first value counts": (
        "Port 1111\nHost backup\nPort 2222\nHost *\nPort 3333\nUser u\n",
        ["backup", "x"],
    ),
    "patterns": ("Host *.example.com !b.example.com\n  Port 2222\n", ["a.example.com", "b.example.com", "c"]),
    "a negation alone": ("Host !b\n  Port 2222\n", ["a", "b"]),
    "a question mark": ("Host back?p\n  Port 2222\n", ["backup", "backuup"]),
    "brackets are no pattern": ("Host [ab]ackup\n  Port 2222\n", ["backup"]),
    "several patterns": ("Host one two thr*\n  Port 2222\n", ["one", "two", "three", "four"]),
    "large letters in the name": ("Host Backup\n  HostName TEN.Example.COM\n", ["Backup", "backup"]),
    "the name within a name": ("Host *\n  HostName %h.example.com\n", ["backup"]),
    "a per cent sign": ("Host backup\n  HostName a%%b\n", ["backup"]),
    "several keys": (
        "IdentityFile /k/one\nHost backup\n IdentityFile /k/two\n IdentityFile /k/one\n",
        ["backup"],
    ),
    "no key": ("Host backup\nIdentityFile none\n", ["backup"]),
    "only the keys named": ("IdentitiesOnly yes\nIdentityFile ~/.ssh/one\n", ["backup"]),
    "known hosts in several files": ('UserKnownHostsFile /k/one "/k/two three"\n', ["backup"]),
    "no known hosts": ("UserKnownHostsFile none\nGlobalKnownHostsFile /k/all\n", ["backup"]),
    "tokens in the known hosts": ("UserKnownHostsFile ~/.ssh/known_%h_%p\nPort 2222\n", ["backup"]),
    "an alias for the key": ("Host backup\nHostKeyAlias the-backup\n", ["backup"]),
    "a time limit": ("ConnectTimeout 17\n", ["backup"]),
    "a time limit in minutes": ("ConnectTimeout 1m30\n", ["backup"]),
    "no time limit": ("ConnectTimeout none\n", ["backup"]),
    "a jump": ("Host backup\nProxyJump bastion\n", ["backup"]),
    "a jump with user and port": ("ProxyJump bob@bastion:2222\n", ["backup"]),
    "several jumps": ("ProxyJump one,bob@two,three:33\n", ["backup"]),
    "a jump as an address": ("ProxyJump ssh://bob@bastion:2222\n", ["backup"]),
    "no jump": ("Host backup\nProxyJump none\nHost *\nProxyJump bastion\n", ["backup", "other"]),
    "a program": ('ProxyCommand nc -X 5 "a b" %h %p\nPort 2222\n', ["backup"]),
    "no program": ("Host backup\nProxyCommand none\nHost *\nProxyCommand nc %h %p\n", ["backup", "other"]),
    "a jump before a program": ("ProxyJump bastion\nProxyCommand nc %h %p\n", ["backup"]),
    "a program before a jump": ("ProxyCommand nc %h %p\nProxyJump bastion\n", ["backup"]),
    "comments and blank lines": ("# Port 1\n\n  # Port 2\nPort 2222 # why not\n", ["backup"]),
    "an included file": ("Include {folder}/more\nPort 1111\n", ["backup", "other"]),
    "a file included for one host": (
        "Host backup\nInclude {folder}/more\nHost *\nPort 3\n",
        ["backup", "other"],
    ),
    "what follows an included file": ("Host backup\nInclude {folder}/more\nUser u\n", ["backup", "other"]),
    "a pattern of files": ("Include {folder}/mor*\n", ["backup", "other"]),
    "a missing file included": ("Include {folder}/none {folder}/more\n", ["backup"]),
    "match all": ("Host backup\nPort 2222\nMatch all\nUser u\n", ["backup", "other"]),
    "match a host": ("Host b\nHostName ten\nMatch host ten\nPort 2222\n", ["b", "ten", "other"]),
    "match the host as typed": ("Host b\nHostName ten\nMatch originalhost b\nPort 2222\n", ["b", "ten"]),
    "match a user": ("Host b\nUser u\nMatch user u,v\nPort 2222\n", ["b", "other"]),
    "match two conditions": (
        "Match host b* user nobody\nPort 2222\nMatch host b* !user nobody\nPort 3\n",
        ["b"],
    ),
    "match what is not": ("Match !host b\nPort 2222\n", ["b", "c"]),
    "match the last time": ("Match final host ten\nPort 2222\nHost b\nHostName ten\n", ["b", "ten"]),
    "what nobody needs here": ("ForwardAgent yes\nServerAliveInterval 60\nSendEnv LANG\nPort 2222\n", ["b"]),
    "blanks behind": ("Host backup   \n  Port 2222   \n", ["backup"]),
    "lines that end as on Windows": ("Host backup\r\n  Port 2222\r\n", ["backup"]),
    "a comment with a form feed": ("# was:\fProxyCommand nc %h %p\nPort 2222 \f\n", ["backup"]),
    "a comment with a line separator": ("# was:\u2028ProxyCommand nc %h %p\nPort 2222\n", ["backup"]),
    "a comment with a carriage return": ("# was:\rProxyCommand nc %h %p\nPort 2222\n", ["backup"]),
}
MORE = "Host backup\n  Port 4444\nHost other\n  User somebody\n"


def of_ssh(file: Path, host: str) -> dict[str, list[str]]:
    command = ["ssh", "-G", "-F", str(file), host]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    values: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        values.setdefault(keyword, []).append(value)
    return values


def expanded(paths: list[str]) -> list[str]:
    return [os.path.expanduser(path) for path in paths if path != "none"]


def jumps_of(values: dict[str, list[str]]) -> list[Jump]:
    # ssh shows a chain as its last host, with the ones before it: the text of the file.
    return list(parse_jumps(values.get("proxyjump", ["none"])[0]))


@pytest.mark.parametrize("what", TABLE)
def test_a_configuration_file_means_what_it_means_to_ssh(tmp_path: Path, what: str) -> None:
    content, hosts = TABLE[what]
    file = tmp_path / "config"
    file.write_text(content.format(folder=tmp_path))
    (tmp_path / "more").write_text(MORE)
    for host in hosts:
        theirs, ours = of_ssh(file, host), look_up(host, (file,), HERE)
        assert ours.hostname == theirs["hostname"][0]
        assert str(ours.port or 22) == theirs["port"][0]
        assert (ours.user or HERE.user) == theirs["user"][0]
        assert ("yes" if ours.identities_only else "no") == theirs["identitiesonly"][0]
        assert ours.key_alias == theirs.get("hostkeyalias", [None])[0]
        assert str(int(ours.connect_timeout_s or 0)) == theirs["connecttimeout"][0].replace("none", "0")
        if ours.identity_files is not None:
            assert list(map(str, ours.identity_files)) == expanded(theirs["identityfile"])
        if ours.known_hosts is not None:
            shown = " ".join(map(str, ours.known_hosts))
            assert shown == " ".join(expanded(theirs["userknownhostsfile"]))
        assert list(ours.jumps) == jumps_of(theirs)
        command = theirs.get("proxycommand", [None])[0]
        if command is not None:  # ssh shows it before it fills in host and port.
            command = command.replace("%h", ours.hostname).replace("%p", str(ours.port or 22))
        assert ours.proxy_command == command
        assert ours.warnings == ()


@pytest.mark.parametrize(
    "content",
    [
        "Port abc\n",
        "Port 0\n",
        "Port 65536\n",
        "Port\n",
        "IdentitiesOnly perhaps\n",
        "ConnectTimeout soon\n",
        'Host "backup\n',
        "HostName %q\n",
        "Match\n",
        "Match host\n",
        "Include {folder}/config\n",
        "Host\n",
        "HostName ten eleven\n",
        "IdentityFile /k/one /k/two\n",
        "\fPort 2222\n",
        "\u00a0Port 2222\n",
        "Port\u00a02222\n",
        "\ufeffPort 2222\n",
    ],
)
def test_what_ssh_refuses_is_an_error_that_names_the_file(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config"
    file.write_text(content.format(folder=tmp_path))
    with pytest.raises(subprocess.CalledProcessError):
        of_ssh(file, "backup")
    with pytest.raises(ArchiveConnectionError) as caught:
        look_up("backup", (file,), HERE)
    assert str(file) in str(caught.value) or "ssh -G" in str(caught.value)


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text("ProxyCommand evil\n")
    file.chmod(0o666)
    with pytest.raises(ArchiveConnectionError, match="others than you and root may write"):
        look_up("backup", (file,), HERE)


def test_match_exec_runs_nothing_and_is_warned_of(tmp_path: Path) -> None:
    file, trace = tmp_path / "config", tmp_path / "trace"
    file.write_text(f'Match host backup exec "touch {trace}"\nPort 2222\n')
    found = look_up("backup", (file,), HERE)
    assert found.port is None and not trace.exists()
    assert found.warnings == (f"{file}:1: Match exec is not followed, and counts as not matching",)
    assert look_up("other", (file,), HERE).warnings == ()


def test_what_is_given_counts_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text("Port 2222\nUser other\nMatch user me\nHostName ten\n")
    assert look_up("backup", (file,), HERE, user="me", port=1) == HostConfig(
        hostname="ten", user="me", port=1
    )


def test_files_count_in_their_order_and_missing_ones_say_nothing(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("Port 1111\n")
    second.write_text("Port 2222\nUser u\n")
    found = look_up("backup", (tmp_path / "none", first, second), HERE)
    assert (found.port, found.user) == (1111, "u")


def test_a_user_without_a_home_has_no_files_of_his_own(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text("Port 2222\nInclude more\n")
    here = Here(user="54321", home=None, host="container")
    assert look_up("backup", (file,), here).port == 2222


def test_names_have_their_port_unless_it_is_the_usual_one() -> None:
    assert name_of("backup", 22) == "backup"
    assert name_of("backup", 2222) == "[backup]:2222"

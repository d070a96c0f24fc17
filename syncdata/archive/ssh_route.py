"""The hosts on the way to the backup host: what ``~/.ssh/config`` says of each, and of the way itself.

Knows settings and configuration files; connects to nothing.
"""

from __future__ import annotations

import getpass
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from syncdata.archive.known_hosts import SSH_PORT, name_of
from syncdata.archive.login import Login, home, system_known_hosts, usual_known_hosts, usual_ssh_configs
from syncdata.archive.ssh_config import Here, HostConfig, Jump, look_up
from syncdata.errors import ArchiveConnectionError

_MOST_HOPS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One host to log in at. With a *proxy_command*, that is the connection to it."""

    host: str
    port: int
    user: str
    config: HostConfig
    is_last: bool
    proxy_command: str | None = None

    @property
    def key_host(self) -> str:
        """The name under which the host's key is known."""
        return self.config.key_alias or self.host

    @property
    def key_port(self) -> int:
        return SSH_PORT if self.config.key_alias else self.port

    @property
    def known_as(self) -> str:
        return name_of(self.key_host, self.key_port)

    @property
    def location(self) -> str:
        """The login and the host, without secrets."""
        jump = "" if self.is_last else " (a jump host)"
        return f"{self.user}@{self.host}:{self.port}{jump}"

    def known_hosts(self, login: Login) -> tuple[Path, ...]:
        """The files that the host's key is looked up in, the user's own first."""
        if login.known_hosts is not None:
            return (login.known_hosts,)
        own = self.config.known_hosts if self.config.known_hosts is not None else usual_known_hosts()
        system = self.config.system_known_hosts
        return own + (system if system is not None else system_known_hosts())


def find_route(login: Login) -> list[Hop]:
    """Return the hosts to log in at, one through the other; the backup host is the last.

    Raises ArchiveConnectionError when a configuration file is wrong, or leads in a circle.
    """
    files = (login.ssh_config,) if login.ssh_config is not None else usual_ssh_configs()
    here = _here()
    hops: list[Hop] = []
    jump: Jump | None = Jump(host=login.host, user=login.user, port=login.port)
    earlier: list[Jump] = []
    while jump is not None:
        config = look_up(jump.host, files, here, user=jump.user, port=jump.port)
        if not hops:
            earlier = list(config.jumps)
        elif not earlier:
            # The first host of a chain may be reached over others itself; those behind it are in the chain.
            earlier = list(config.jumps)
        is_first = not earlier
        hops.append(
            Hop(
                host=config.hostname,
                port=config.port or SSH_PORT,
                user=config.user or here.user,
                config=config,
                is_last=not hops,
                proxy_command=config.proxy_command if is_first else None,
            )
        )
        if len(hops) > _MOST_HOPS:
            raise ArchiveConnectionError(
                f"the way to {login.host} leads over more than {_MOST_HOPS} jump hosts, or in a circle",
                hint="check ProxyJump in the SSH configuration: ssh -G HOST",
            )
        jump = earlier.pop() if earlier else None
    return hops[::-1]


def _here() -> Here:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())  # A user id without a name, as in containers.
    return Here(user=user, home=home(), host=socket.gethostname())

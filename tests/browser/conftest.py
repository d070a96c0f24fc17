"""A real browser on the real site: Chromium, the site in its own process, and a whole world behind it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright

from syncsite.demo.postgres import free_port
from tests import processes
from tests.world import World

ROOT = Path(__file__).resolve().parents[2]
AXE = (ROOT / "tests" / "vendor" / "axe.min.js").read_text(encoding="utf-8")
PASSWORD = "correct horse battery"
# It talks to the site and to nobody else, and the site is on this machine.
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(autouse=True)
def executable() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    return found


@pytest.fixture
def browser(executable: str, site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Browser]:
    # Playwright drives the browser from an event loop in this thread, which Django takes for its own.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Site:
    """The site of a world: its address, and the commands that run beside it."""

    world: World
    url: str
    environment: dict[str, str]

    def manage(self, *arguments: str) -> None:
        processes.run("manage.py", *arguments, env=self.environment).check_returncode()

    @contextmanager
    def daemon(self, interval_s: int = 1) -> Iterator[None]:
        """A real daemon, in a process of its own."""
        command = ["manage.py", "syncdata_start", "--interval", str(interval_s)]
        process = processes.Process(command, env=self.environment, stderr=subprocess.DEVNULL)
        try:
            wait_until(
                lambda: self.world.value("SELECT count(*) FROM data_sync_runs WHERE stopped_at IS NULL")
            )
            yield
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture
def site(world: World, tmp_path: Path) -> Iterator[Site]:
    configuration = world.state_dir / "syncdata.toml"
    configuration.write_text(world.toml)
    port = free_port()
    environment = os.environ | {
        "DATA_SYNC_CONFIG": str(configuration),
        "DJANGO_SUPERUSER_PASSWORD": PASSWORD,
        "PYTHONPATH": str(ROOT),
    }
    site = Site(world, f"http://127.0.0.1:{port}", environment)
    site.manage("createsuperuser", "--noinput", "--username", "ada", "--email", "ada@example.com")
    command = ["manage.py", "runserver", "--noreload", "--insecure", f"127.0.0.1:{port}"]
    with (tmp_path / "server.log").open("w") as log:
        server = processes.Process(command, env=environment, stdout=log, stderr=log)
        try:
            wait_until(lambda: answers(f"{site.url}/admin/login/"))
            yield site
        finally:
            server.terminate()
            server.wait(20)


@pytest.fixture
def complaints() -> list[str]:
    """What the console said in anger, and what was asked of other hosts: has to stay empty."""
    return []


@pytest.fixture
def context(browser: Browser, site: Site, complaints: list[str]) -> Iterator[BrowserContext]:
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, timezone_id="America/New_York", accept_downloads=True
    )

    def listen(page: Page) -> None:
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on(
            "console",
            lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None,
        )

    def check(request: Request) -> None:
        if not request.url.startswith((site.url, "data:", "blob:")):
            complaints.append(f"asked another host: {request.url}")

    context.on("page", listen)
    context.on("request", check)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, site: Site) -> Page:
    """A page of a superuser who has logged in."""
    page = context.new_page()
    page.goto(f"{site.url}/admin/")
    page.fill("#id_username", "ada")
    page.fill("#id_password", PASSWORD)
    page.click("[type=submit]")
    page.wait_for_selector("#user-tools")
    return page


def wait_until(condition: Callable[[], Any], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False

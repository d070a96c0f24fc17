"""The app in other people's projects: from a wheel, in a new environment, outside the repository."""

from __future__ import annotations

import datetime as dt
import json
import re
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.embedding import ROOT, Environment, Project, start_project
from tests.postgres import Database
from tests.world import delete, insert, update

FIRST, SECOND, THIRD, FOURTH = (f"changes_20260205_10300{n}.json" for n in range(4))
METRICS = "http://127.0.0.1:9808/metrics"


def recipe() -> list[tuple[str, str]]:
    """The page "Embedding in Django" as (what to do, text), in its order."""
    page = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
    return re.findall(r"^<!-- recipe: ([^\n]+) -->\n```\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_the_documented_recipe_works_as_it_is_written(
    environment: Environment, tmp_path: Path, fresh_database: Callable[..., Database]
) -> None:
    project = start_project(environment, tmp_path, fresh_database())
    # A cache that processes share, so that the receiver's work can be seen from here.
    cache = {
        "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
        "LOCATION": str(tmp_path / "cache"),
    }
    project.append("mysite/settings.py", f"CACHES = {{'default': {cache!r}}}\n")
    project.change(FIRST, insert("shop_product", id=1, name="tea", price="2.50"))
    done: list[str] = []
    for kind, text in recipe():
        action, _, name = kind.partition(" ")
        done.append(action)
        match action:
            case "write":
                project.write(name, text)
            case "append":
                project.append(name, text)
            case "run":
                project.shell(text)
            case "python":
                assert "status: not-started" in project.python(text)
            case "daemon":
                assert project.rows("SELECT name, price::text FROM shop_product") == [("tea", "2.50")]
                project.python("from django.core.cache import cache; cache.set('products', 'old', None)")
                project.change(SECOND, update("shop_product", id=1, price="2.75"))
                watch_daemon(project, text.strip())
                assert project.rows("SELECT price::text FROM shop_product") == [("2.75",)]
                assert (
                    project.python("from django.core.cache import cache; print(cache.get('products'))")
                    == "None\n"
                )
            case _:
                pytest.fail(f"the recipe has a step that this test does not know: {kind}")
    assert {"write", "append", "run", "daemon", "python"} == {*done}
    assert project.python(LOOK).split() == ["200", "503"]


LOOK = """
from django.test import Client
for path in ("/metrics/", "/health/"):
    print(Client(headers={"host": "localhost"}).get(path).status_code)
"""


def watch_daemon(project: Project, command: str) -> None:
    """Run the daemon until its metrics say that it has done a cycle; then stop it."""
    daemon = project.start(command)
    try:
        deadline = time.monotonic() + 60
        while not (text := fetch(METRICS)).count('operation="updated",table="shop_product"} 1.0'):
            assert daemon.poll() is None and time.monotonic() < deadline, text or daemon.communicate()[0]
            time.sleep(0.2)
        assert "syncdata_daemon_up 1.0" in text
        daemon.send_signal(signal.SIGTERM)
        output, _ = daemon.communicate(timeout=60)
        assert daemon.returncode == 0, output
        assert f"metrics are at {METRICS}" in output
    finally:
        daemon.kill()
        daemon.communicate()


def fetch(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return str(response.read().decode())
    except OSError:
        return ""


SETTINGS = """
USE_TZ = {use_tz}
TIME_ZONE = "America/New_York"
AUTH_USER_MODEL = "people.Person"
INSTALLED_APPS.remove("django.contrib.admin")
INSTALLED_APPS += ["mysite.apps.BackOffice", "people", "shop", "syncdata", "rangefilter"]
DATABASES = {{
    alias: {{"ENGINE": "django.db.backends.postgresql", "OPTIONS": {{"service": alias}}}}
    for alias in ("default", "replica")
}}
DATABASE_ROUTERS = ["shop.routers.ShopRouter", "syncdata.routers.SyncDataRouter"]
SYNCDATA = {{
    "archive_backend": "local",
    "archive_dir": BASE_DIR / "archive",
    "database": "replica",
    "state_dir": BASE_DIR,
}}
"""

FILES = {
    "mysite/apps.py": """
from django.contrib.admin.apps import AdminConfig

class BackOffice(AdminConfig):
    default_site = "mysite.site.OfficeSite"
""",
    "mysite/site.py": """
from django.contrib.admin import AdminSite

class OfficeSite(AdminSite):
    site_header = "The back office"
""",
    "people/models.py": """
from django.contrib.auth.models import AbstractUser
from django.db import models

class Person(AbstractUser):
    nickname = models.CharField(max_length=20, blank=True)
""",
    "shop/models.py": """
from django.db import models

class Tag(models.Model):
    name = models.CharField(max_length=20)

class Product(models.Model):
    name = models.CharField(max_length=100)
    tags = models.ManyToManyField(Tag)
    seen = models.DateTimeField(null=True)
""",
}


@pytest.fixture(params=[False, True], ids=["naive", "aware"])
def odd(
    request: pytest.FixtureRequest,
    environment: Environment,
    tmp_path: Path,
    fresh_database: Callable[..., Database],
) -> Project:
    """A project that is all that a fresh one is not: users, admin site, time zone, two databases, routers."""
    default, replica = fresh_database(), fresh_database()
    project = start_project(environment, tmp_path, replica)
    replicas_service = project.service_file.read_text()
    defaults_service = replicas_service.replace("[replica]", "[default]").replace(replica.name, default.name)
    project.service_file.write_text(replicas_service + defaults_service)
    project.manage("startapp", "people")
    for name, text in FILES.items():
        project.write(name, text)
    (router,) = [text for kind, text in recipe() if kind == "write shop/routers.py"]
    project.write("shop/routers.py", router)
    project.append("mysite/settings.py", SETTINGS.format(use_tz=request.param))
    project.archive.mkdir()
    project.manage("makemigrations", "people", "shop")
    project.manage("migrate")
    for app in ("shop", "syncdata"):
        project.manage("migrate", app, "--database", "replica")
    return project


def test_an_odd_project_syncs_and_its_pages_and_checks_work(odd: Project) -> None:
    assert odd.manage("makemigrations", "--check", "--dry-run").strip() == "No changes detected"
    assert odd.manage("add_tables", "--app", "shop").splitlines() == [
        "added: shop_tag",
        "added: shop_product_tags",
        "added: shop_product",
    ]
    odd.change(
        FIRST,
        insert("shop_tag", id=1, name="new"),
        insert("shop_product", id=1, name="tea", seen="2026-02-05 10:30:00+00"),
        insert("shop_product_tags", id=1, product_id=1, tag_id=1),
        insert("people_person", id=1, username="eve"),
    )
    assert "3 added" in odd.manage("syncdata_start", "--once")
    assert odd.rows("SELECT (seen AT TIME ZONE 'UTC')::text FROM shop_product") == [("2026-02-05 10:30:00",)]
    status = json.loads(odd.manage("syncdata_status", "--json"))
    last_sync = dt.datetime.strptime(status["last_sync_time"], "%Y-%m-%dT%H:%M:%S%z")
    assert abs(dt.datetime.now(dt.UTC) - last_sync) < dt.timedelta(minutes=1)
    odd.manage("check", "--tag", "syncdata", "--database", "replica", "--fail-level", "WARNING")
    assert odd.rows("SELECT to_regclass('people_person'), to_regclass('tables_to_sync') IS NULL") == [
        (None, False)
    ]
    pages = odd.python(PAGES)
    assert pages.split() == ["200"] * 6 and "The back office" not in pages


PAGES = """
from django.contrib.auth import get_user_model
from django.test import Client
client = Client(headers={"host": "localhost"})
client.force_login(get_user_model().objects.create_superuser("ada", "", "x"))
for page in ("", "syncdata/tabletosync/", "syncdata/synclog/", "syncdata/syncmetric/", "syncdata/checkpoint/",
             "syncdata/syncrun/"):
    response = client.get("/admin/" + page)
    assert b"The back office" in response.content or response.status_code != 200, page
    print(response.status_code)
"""


@pytest.mark.parametrize("odd", [True], indirect=True)
def test_a_migration_of_a_synced_table_loses_no_record(odd: Project) -> None:
    odd.manage("add_tables", "shop.Product")
    odd.change(FIRST, insert("shop_product", id=1, name="tea"))
    odd.manage("syncdata_start", "--once")

    # Production has a column that is not here yet.
    odd.change(SECOND, insert("shop_product", id=2, name="jam", stock=5), delete("shop_product", id=1))
    assert "SHD_SYN_050" in (refusal := odd.refusal("syncdata_start", "--once")) and "stock" in refusal
    models = FILES["shop/models.py"] + "    stock = models.IntegerField(default=0, db_default=0)\n"
    odd.write("shop/models.py", models)
    odd.manage("makemigrations", "shop")
    odd.manage("migrate", "shop", "--database", "replica")
    odd.manage("syncdata_start", "--once")
    assert odd.rows("SELECT id, name, stock FROM shop_product") == [(2, "jam", 5)]

    # Production has dropped a column that must be filled here.
    odd.change(THIRD, insert("shop_product", id=3, stock=6), update("shop_product", id=2, stock=4))
    assert "SHD_SYN_0" in odd.refusal("syncdata_start", "--once")
    odd.write("shop/models.py", models.replace("    name = models.CharField(max_length=100)\n", ""))
    odd.manage("makemigrations", "shop")
    odd.manage("migrate", "shop", "--database", "replica")
    odd.manage("syncdata_start", "--once")
    assert odd.rows("SELECT id, stock FROM shop_product ORDER BY id") == [(2, 4), (3, 6)]

    # A column is dropped here while records with it are still to come: taken back, they are applied.
    odd.write(
        "shop/models.py", re.sub(r"    (name = models.CharField\(max_length=100\)|seen = .*)\n", "", models)
    )
    odd.manage("makemigrations", "shop")
    odd.manage("migrate", "shop", "--database", "replica")
    odd.change(FOURTH, insert("shop_product", id=4, stock=1, seen="2026-02-05 10:30:00+00"))
    assert "SHD_SYN_050" in odd.refusal("syncdata_start", "--once")
    odd.manage("migrate", "shop", "0003", "--database", "replica")
    odd.manage("syncdata_start", "--once")
    odd.manage("migrate", "shop", "--database", "replica")
    assert odd.rows("SELECT id, stock FROM shop_product ORDER BY id") == [(2, 4), (3, 6), (4, 1)]


WATCH = """
import os, sys
seen = []

def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        path = os.path.realpath(arguments[0])
        is_code = path.endswith((".py", ".pyc")) or path.startswith((sys.prefix, sys.base_prefix))
        if not is_code:
            seen.append(path)
    elif event in ("socket.connect", "socket.getaddrinfo"):
        seen.append(event)

sys.addaudithook(watch)
os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
import django
django.setup()
import syncdata.service, syncdata.monitoring, syncdata.signals
from django.db import connections
seen += [alias for alias in connections if connections[alias].connection is not None]
print(seen)
"""


@pytest.mark.parametrize("odd", [True], indirect=True)
def test_nothing_is_read_and_nothing_connects_when_django_starts(odd: Project) -> None:
    odd.write("watch.py", WATCH)
    assert odd.shell("python watch.py") == "[]\n"
    odd.append("mysite/settings.py", "open(BASE_DIR / 'manage.txt', 'w').close()\n")
    assert "manage.txt" in odd.shell("python watch.py")  # the watcher does see

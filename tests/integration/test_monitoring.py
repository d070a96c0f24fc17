"""Metrics and health, as Prometheus, load balancers and django-health-check ask for them."""

from __future__ import annotations

import datetime as dt
import json
import logging
import socket
import struct
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import AnonymousUser
from django.db import connections
from django.test import RequestFactory, override_settings
from health_check.views import HealthCheckView
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from syncdata.errors import MonitoringError
from syncdata.management.commands.syncdata_start import Command
from syncdata.monitoring import (
    SyncDataCollector,
    health_view,
    metrics_view,
    read_status,
    render_metrics,
    serve_metrics,
    status_metrics,
)
from tests.world import World, insert, update

FIRST, SECOND = "changes_20260205_103000.json", "changes_20260205_103001.json"
NOW = dt.datetime(2026, 2, 5, 10, 31, tzinfo=dt.UTC)


@pytest.fixture
def users(world: World) -> Iterator[World]:
    """A world that is the project's own configuration, with a table in sync."""
    world.execute("CREATE TABLE users (id int PRIMARY KEY, name text)")
    world.whitelist("users")
    world.write(
        FIRST, [insert("users", id=1) | {"lsn": "1/A"}, update("users", id=1, name="Ann") | {"lsn": "1/B"}]
    )
    world.sync()
    with world.service() as service:
        service.declare_whole(["users"])
    with override_settings(SYNCDATA=embedded(world)):
        yield world


def embedded(world: World) -> dict[str, Any]:
    return {
        "archive_backend": "local",
        "archive_dir": str(world.archive),
        "database": world.alias,
        "state_dir": str(world.state_dir),
    }


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    """Return the values by metric name and labels: table, operation."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items(), reverse=True))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def disconnect(world: World) -> None:
    """The database is gone: nothing listens at its port."""
    connections.databases[world.alias] |= {"HOST": "127.0.0.1", "PORT": 1}


def test_metrics_tell_what_the_books_hold(users: World) -> None:
    values = samples(render_metrics()[0])
    assert values["syncdata_daemon_up",] == 0
    assert values["syncdata_healthy",] == 0
    assert values["syncdata_tables",] == 1
    assert values["syncdata_errors_total",] == 0
    assert values["syncdata_records_total", "users", "added"] == 1
    assert values["syncdata_records_total", "users", "updated"] == 1
    assert values["syncdata_records_total", "users", "deleted"] == 0
    assert values["syncdata_table_blocked", "users"] == 0
    assert values["syncdata_checkpoint_record", "users"] == 2
    assert values["syncdata_checkpoint_lsn_bytes", "users"] == (1 << 32) + 0xB
    assert values["syncdata_checkpoint_file_timestamp_seconds", "users"] == NOW.timestamp() - 60
    assert 0 <= values["syncdata_last_cycle_age_seconds",] < 60
    assert ("syncdata_daemon_start_timestamp_seconds",) not in values


def test_freshness_is_the_age_of_the_newest_change(users: World) -> None:
    families = {family.name: family for family in status_metrics(read_status(), now=NOW)}
    assert [s.value for s in families["syncdata_table_freshness_seconds"].samples] == [60]


def test_a_table_without_a_checkpoint_has_no_made_up_samples(users: World) -> None:
    users.whitelist("late")
    values = samples(render_metrics()[0])
    assert ("syncdata_table_freshness_seconds", "late") not in values
    assert ("syncdata_checkpoint_record", "late") not in values
    assert values["syncdata_records_total", "late", "added"] == 0


def test_blocked_tables_show(users: World) -> None:
    users.write(SECOND, [insert("users", id=2, missing="column")])
    users.sync()
    assert samples(render_metrics()[0])["syncdata_table_blocked", "users"] == 1


def test_the_metrics_view_answers_prometheus_and_is_only_for_reading(
    users: World, rf: RequestFactory
) -> None:
    response = metrics_view(rf.get("/metrics/"))
    assert (response.status_code, response["Content-Type"].split(";")[0]) == (200, "text/plain")
    assert samples(response.content)["syncdata_tables",] == 1
    assert metrics_view(rf.post("/metrics/")).status_code == 405


def test_a_collector_can_join_the_hosts_registry_without_a_database(users: World) -> None:
    disconnect(users)
    registry = CollectorRegistry()
    registry.register(SyncDataCollector())


def test_health_is_503_until_a_daemon_runs(users: World, rf: RequestFactory) -> None:
    assert health_view(rf.get("/health/")).status_code == 503
    with users.service() as service, service._worker.running(60):
        response = health_view(rf.get("/health/"))
    assert response.status_code == 200
    assert json.loads(response.content) | {"last_sync": ""} == {
        "status": "ok",
        "daemon": "active",
        "tables": 1,
        "blocked": 0,
        "doubtful": 0,
        "last_sync": "",
    }


def test_a_table_in_doubt_is_not_green_for_monitoring(users: World, rf: RequestFactory) -> None:
    mark = [{"kind": "suspect", "text": "something happened", "hint": "resync it"}]
    users.execute(f"UPDATE data_sync_checkpoints SET marks = '{json.dumps(mark)}'")
    with users.service() as service, service._worker.running(60):
        assert health_view(rf.get("/health/")).status_code == 503
        seen = samples(metrics_view(rf.get("/metrics/")).content)
    assert json.loads(health_view(rf.get("/health/")).content)["doubtful"] == 1
    assert seen["syncdata_healthy",] == 0
    assert seen["syncdata_table_state", "users", "suspect"] == 1
    assert seen["syncdata_table_state", "users", "active"] == 0


class Viewer(AnonymousUser):
    def has_perm(self, perm: str, obj: object = None) -> bool:
        return perm == "syncdata.view_checkpoint"


def test_only_who_may_see_checkpoints_is_told_names_and_reasons(users: World, rf: RequestFactory) -> None:
    users.write(SECOND, [insert("users", id=2, missing="column")])
    users.sync()
    request = rf.get("/health/")
    request.user = AnonymousUser()
    anonymous = health_view(request).content.decode()
    assert json.loads(anonymous)["blocked"] == 1
    assert "users" not in anonymous and "SHD_SYN" not in anonymous
    request.user = Viewer()
    (reason, _) = json.loads(health_view(request).content)["problems"]
    assert reason.startswith("users is blocked: SHD_SYN_050: ")


@pytest.mark.parametrize("view", [metrics_view, health_view])
def test_a_database_that_is_gone_is_503_and_the_answer_names_no_host(
    users: World, rf: RequestFactory, view: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    disconnect(users)
    response = view(rf.get("/"))
    assert response.status_code == 503
    assert b"SHD_SYN_090" in response.content and b"127.0.0.1" not in response.content
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.__dict__["code"] == "SHD_SYN_090"


def test_a_database_that_hangs_is_503_soon(users: World, rf: RequestFactory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connections.databases[users.alias] |= {"HOST": "127.0.0.1", "PORT": silent.getsockname()[1]}
        started = time.monotonic()
        assert metrics_view(rf.get("/")).status_code == 503
        assert time.monotonic() - started < 8


def test_a_lock_on_the_books_is_503_soon(users: World, rf: RequestFactory) -> None:
    with users.connect() as connection, connection.transaction():
        connection.execute("LOCK tables_to_sync")
        assert health_view(rf.get("/")).status_code == 503


def test_a_broken_configuration_is_503(users: World, rf: RequestFactory) -> None:
    with override_settings(SYNCDATA={"database": "default"}):
        assert b"SHD_SYN_002" in metrics_view(rf.get("/")).content


def test_the_daemons_port_serves_metrics_and_health(users: World) -> None:
    with serve_metrics(users.config, port=0) as url:
        status, body = get(url)
        assert (status, samples(body)["syncdata_tables",]) == (200, 1)
        assert get(url.replace("/metrics", "/health"))[0] == 503
        assert get(url.replace("/metrics", "/"))[0] == 404
        disconnect(users)
        assert get(url)[0] == 503
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port_of(url)), timeout=1)


def port_of(url: str) -> int:
    return int(url.rsplit(":")[-1].split("/")[0])


def test_a_client_that_hangs_up_leaves_no_traceback(users: World, capfd: pytest.CaptureFixture[str]) -> None:
    with serve_metrics(users.config, port=0) as url:
        client = socket.create_connection(("127.0.0.1", port_of(url)))
        client.send(b"GET /hea")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no goodbye
        client.close()
        assert get(url)[0] == 200
        time.sleep(0.2)
    assert capfd.readouterr().err == ""


def test_the_daemons_port_answers_a_few_at_a_time(users: World) -> None:
    with serve_metrics(users.config, port=0) as url:
        silent = [socket.create_connection(("127.0.0.1", port_of(url)), timeout=5) for _ in range(4)]
        with socket.create_connection(("127.0.0.1", port_of(url)), timeout=5) as one_more:
            assert one_more.recv(1) == b"", "hung up on"
        for client in silent:
            client.close()
        time.sleep(0.2)
        assert get(url)[0] == 200


def test_a_port_that_is_taken_is_refused_with_a_code(users: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MonitoringError, match=f"port {port}"), serve_metrics(users.config, port=port):
            pass


def test_without_prometheus_client_the_message_says_what_to_install(
    users: World, monkeypatch: pytest.MonkeyPatch, rf: RequestFactory
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MonitoringError, match=r"pip install 'syncdata\[monitoring\]'"):
        render_metrics()
    assert metrics_view(rf.get("/")).status_code == 503
    assert health_view(rf.get("/")).status_code == 503  # which needs none: no daemon runs here


def test_the_start_command_serves_while_it_runs(
    users: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "syncdata")
    seen: list[dict[tuple[str, ...], float]] = []

    def scrape(self: Command, *args: object) -> None:
        (message,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("metrics are at")]
        seen.append(samples(get(message.rpartition(" ")[2])[1]))

    monkeypatch.setattr(Command, "_tell", scrape)
    monkeypatch.setattr("syncdata.management.commands.syncdata_start.tune_interpreter", lambda: None)
    from django.core.management import call_command

    call_command("syncdata_start", "--once", "--metrics-port", "0", verbosity=0)
    assert seen[0]["syncdata_tables",] == 1


def test_django_health_check_asks_us(users: World, rf: RequestFactory) -> None:
    view = async_to_sync(HealthCheckView.as_view(checks=["syncdata.health_check.SyncData"]))
    response = view(rf.get("/ht/?format=json"))
    assert response.status_code == 500
    assert json.loads(response.content)["SyncData()"].endswith("daemon not-started, 0 of 1 tables blocked")
    with users.service() as service, service._worker.running(60):
        assert view(rf.get("/ht/?format=json")).status_code == 200
    disconnect(users)
    assert b"SHD_SYN_090" in view(rf.get("/ht/?format=json")).content


def test_times_of_the_books_have_a_zone_also_where_the_project_has_none(users: World) -> None:
    expected = read_status()
    with override_settings(USE_TZ=False, TIME_ZONE="America/New_York"):
        status = read_status()
    assert status.last_sync_time == expected.last_sync_time
    assert asdict(replace(status, sync_frequency=0)) == asdict(replace(expected, sync_frequency=0))

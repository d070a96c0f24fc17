"""For monitoring systems: metrics for Prometheus, and whether all is well. Reads, and changes nothing.

Each question opens a short connection of its own, with a time limit, so that a database that is gone or
hangs becomes the answer 503, also in the middle of a daemon's cycle. ``prometheus_client`` is needed for
metrics only, and not before they are asked for.
"""

from __future__ import annotations

import datetime as dt
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from django.db.transaction import non_atomic_requests
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from syncdata.apply.state.status import STATES
from syncdata.changes.filenames import file_time
from syncdata.changes.position import parse_lsn
from syncdata.conf import SyncConfig, load_config
from syncdata.errors import MonitoringError, SyncError
from syncdata.runtime.unexpected import unexpected_error
from syncdata.service import DaemonStatus, SyncDataService, TableInfo

if TYPE_CHECKING:
    from prometheus_client.core import Metric

logger = logging.getLogger(__name__)

DEFAULT_ADDRESS = "127.0.0.1"
# Prometheus gives up after 10 seconds by default, load balancers sooner.
TIMEOUT_S = 3
_MOST_ANSWERS = 4
READ_PERMISSION = "syncdata.view_checkpoint"


def read_status(config: SyncConfig | None = None) -> DaemonStatus:
    """Return the daemon's status, within a few seconds. Raises SyncError, also for a broken configuration."""
    with SyncDataService(config or load_config(), timeout_s=TIMEOUT_S) as service:
        return service.get_status()


# Metrics


class SyncDataCollector:
    """The status as metrics, for a Prometheus registry of the host's own: ``REGISTRY.register(…)``.

    Registering it reads nothing; collecting raises SyncError when the status cannot be read.
    """

    def __init__(self, config: SyncConfig | None = None) -> None:
        self._config = config

    def describe(self) -> list[Metric]:
        """Return nothing; without this method, a registry would collect when the collector is registered."""
        return []

    def collect(self) -> Iterable[Metric]:
        return status_metrics(read_status(self._config), now=dt.datetime.now(dt.UTC))


def status_metrics(status: DaemonStatus, *, now: dt.datetime) -> list[Metric]:
    """Return *status* as Prometheus metrics. Pure. A value that is not known yet has no sample, not 0."""
    _require_prometheus()
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    def gauge(name: str, text: str, value: float | None) -> Metric:
        family = GaugeMetricFamily(f"syncdata_{name}", text)
        if value is not None:
            family.add_metric([], value)
        return family

    def table_gauge(name: str, text: str, value: Callable[[TableInfo], float | None]) -> Metric:
        family = GaugeMetricFamily(f"syncdata_{name}", text, labels=["table"])
        for table in status.tables:
            if (number := value(table)) is not None:
                family.add_metric([table.table_name], number)
        return family

    records = CounterMetricFamily(
        "syncdata_records",
        "Records applied since the table's beginning or resync.",
        labels=["table", "operation"],
    )
    for table in status.tables:
        for operation in ("added", "updated", "deleted", "truncated"):
            records.add_metric([table.table_name, operation], getattr(table, f"records_{operation}"))
    states = GaugeMetricFamily(
        "syncdata_table_state", "1 for the state that the table is in, else 0.", labels=["table", "state"]
    )
    for table in status.tables:
        for state in STATES:
            states.add_metric([table.table_name, state], table.state == state)
    last_cycle = status.last_sync_time
    return [
        gauge("daemon_up", "1 while a daemon runs on this database.", status.is_active),
        gauge("healthy", "1 while syncdata_status --check finds no problem.", status.is_healthy),
        gauge("daemon_start_timestamp_seconds", "When the daemon started.", _timestamp(status.start_time)),
        gauge("sync_interval_seconds", "From one cycle to the next.", status.sync_frequency),
        gauge("last_cycle_timestamp_seconds", "When the last cycle ended.", _timestamp(last_cycle)),
        gauge("last_cycle_age_seconds", "Since the last cycle ended.", _age_s(last_cycle, now)),
        CounterMetricFamily("syncdata_errors", "Errors since the daemon's start.", value=status.errors),
        CounterMetricFamily(
            "syncdata_unexpected_errors",
            "Errors since the daemon's start that are faults of syncdata.",
            value=status.unexpected_errors,
        ),
        gauge("tables", "Whitelisted tables.", len(status.tables)),
        records,
        table_gauge("table_blocked", "1 while an error holds the table.", lambda t: t.state == "blocked"),
        states,
        table_gauge(
            "table_freshness_seconds",
            "Age of the newest change applied to the table.",
            lambda t: _age_s(t.last_change_at, now),
        ),
        table_gauge(
            "table_last_sync_timestamp_seconds",
            "When the table's checkpoint moved last.",
            lambda t: _timestamp(t.last_sync_at),
        ),
        table_gauge(
            "checkpoint_file_timestamp_seconds",
            "The time in the name of the change file of the checkpoint.",
            lambda t: _file_timestamp(t.checkpoint),
        ),
        table_gauge(
            "checkpoint_record", "Records of that file that are applied.", lambda t: _record(t.checkpoint)
        ),
        table_gauge(
            "checkpoint_lsn_bytes",
            "LSN of the newest record applied.",
            lambda t: parse_lsn(t.last_lsn) if t.last_lsn else None,
        ),
        table_gauge(
            "table_verified_timestamp_seconds",
            "When the newest whole round of checks found the table's rows to be production's.",
            lambda t: _timestamp(t.verified_at),
        ),
        table_gauge("table_differs", "1 while rows are known not to be production's.", lambda t: t.differs),
    ]


def render_metrics(config: SyncConfig | None = None) -> tuple[bytes, str]:
    """Return the text that Prometheus scrapes and its content type. Raises SyncError."""
    _require_prometheus()
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(SyncDataCollector(config))
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _require_prometheus() -> None:
    try:
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise MonitoringError(
            "metrics need the package prometheus_client", hint="pip install 'syncdata[monitoring]'"
        ) from error


def _timestamp(moment: dt.datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _age_s(moment: dt.datetime | None, now: dt.datetime) -> float | None:
    return None if moment is None else max(0.0, (now - moment).total_seconds())


def _file_timestamp(checkpoint: str) -> float | None:
    return _timestamp(file_time(checkpoint))


def _record(checkpoint: str) -> int | None:
    return int(checkpoint.rpartition(":")[2]) if checkpoint else None


# Health


def health_of(status: DaemonStatus) -> dict[str, Any]:
    """Return the health as anyone may know it: without names and reasons."""
    blocked = sum(table.state == "blocked" for table in status.tables)
    return {
        "status": "ok" if status.is_healthy else "unhealthy",
        "daemon": status.status,
        "tables": len(status.tables),
        "blocked": blocked,
        "doubtful": sum(table.is_doubtful for table in status.tables),
        "last_sync": None if status.last_sync_time is None else status.last_sync_time.isoformat(),
    }


# Views for the urls of the host project


@non_atomic_requests
@never_cache
@require_safe
def metrics_view(request: HttpRequest) -> HttpResponse:
    """Answer with metrics in Prometheus's text format, which name the tables; 503 without a status."""
    try:
        body, content_type = render_metrics()
    except SyncError as error:
        logger.error("%s", error, extra=error.fields)
        return HttpResponse(_refusal(error), status=503, content_type="text/plain")
    return HttpResponse(body, content_type=content_type)


@non_atomic_requests
@never_cache
@require_safe
def health_view(request: HttpRequest) -> HttpResponse:
    """Answer 200 when all is well, else 503, with a JSON object. Users who may see checkpoints also get the
    problems."""
    try:
        status = read_status()
    except SyncError as error:
        logger.error("%s", error, extra=error.fields)
        return JsonResponse({"status": "unreachable", "code": error.code}, status=503)
    health = health_of(status)
    user = getattr(request, "user", None)
    if user is not None and user.has_perm(READ_PERMISSION):
        health["problems"] = [str(problem) for problem in status.problems]
    return JsonResponse(health, status=200 if status.is_healthy else 503)


def _refusal(error: SyncError) -> str:
    """Return the code of *error* alone: the message may name hosts, and is in the log."""
    return f"{error.code}: not available; the log says why\n"


# The daemon's own port


@contextmanager
def serve_metrics(config: SyncConfig, *, port: int, address: str = DEFAULT_ADDRESS) -> Iterator[str]:
    """Serve ``/metrics`` and ``/health`` from threads of this process; yield the URL of the metrics.

    Raises MonitoringError when the port cannot be had, or prometheus_client is missing.
    """
    _require_prometheus()

    class Handler(_Handler):
        sync_config = config

    try:
        server = _Server(address, port, Handler)
    except (OSError, OverflowError) as error:
        raise MonitoringError(
            f"cannot listen on {address}, port {port}: {getattr(error, 'strerror', None) or error}",
            hint="choose another --metrics-port or --metrics-address",
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="syncdata-metrics", daemon=True)
    thread.start()
    host = f"[{address}]" if ":" in address else address
    try:
        yield f"http://{host}:{server.server_address[1]}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    """Answers a few at a time, since each takes a thread of the daemon and a session of its database; whoever
    comes beyond that is hung up on."""

    daemon_threads = True

    def __init__(self, address: str, port: int, handler: type[_Handler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._free = threading.Semaphore(_MOST_ANSWERS)
        super().__init__((address, port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the process may have no more threads
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what the base class prints with a traceback: a client that hangs up, as port checks do."""
        logger.debug("a request was cut off", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET requests; of a request, only the path is used."""

    sync_config: SyncConfig
    server_version, sys_version = "syncdata", ""
    timeout = 10

    def do_GET(self) -> None:
        answers = {"/metrics": self._metrics, "/health": self._health}
        answer = answers.get(self.path.partition("?")[0])
        if answer is None:
            self._send(HTTPStatus.NOT_FOUND, b"there are /metrics and /health\n", "text/plain")
            return
        try:
            answer()
        except OSError as error:
            logger.debug("a scrape was cut off: %s", error.strerror)
        except Exception as failure:  # the next scrape may fare better
            refused = failure if isinstance(failure, SyncError) else unexpected_error(failure)
            logger.error("%s", refused, extra=refused.fields)
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, _refusal(refused).encode(), "text/plain")

    def _metrics(self) -> None:
        body, content_type = render_metrics(self.sync_config)
        self._send(HTTPStatus.OK, body, content_type)

    def _health(self) -> None:
        status = read_status(self.sync_config)
        code = HTTPStatus.OK if status.is_healthy else HTTPStatus.SERVICE_UNAVAILABLE
        self._send(code, JsonResponse(health_of(status)).content, "application/json")

    def _send(self, code: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests: a scrape comes every few seconds."""

"""syncdata as a check of django-health-check (4 or later). Only for projects that have it installed.

HealthCheckView.as_view(checks=["syncdata.health_check.SyncData", …])
"""

from __future__ import annotations

import dataclasses

from health_check.base import HealthCheck
from health_check.exceptions import ServiceUnavailable

from syncdata.errors import SyncError
from syncdata.monitoring import health_of, read_status


@dataclasses.dataclass
class SyncData(HealthCheck):
    """Checks that the daemon runs, no table is blocked or in doubt, the last cycle went well; names none."""

    def run(self) -> None:  # not async: it waits for the database in a thread
        try:
            status = read_status()
        except SyncError as error:
            raise ServiceUnavailable(f"{error.code}: the status cannot be read") from None
        if not status.is_healthy:
            health = health_of(status)
            raise ServiceUnavailable(
                f"daemon {health['daemon']}, {health['blocked']} of {health['tables']} tables blocked"
                + (f", {health['doubtful']} in doubt" if health["doubtful"] else "")
            )

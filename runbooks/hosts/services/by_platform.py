"""Services that a platform starts, such as Kubernetes or a Procfile: they are looked at, and never
controlled.
"""

from collections.abc import Mapping, Sequence

from runbooks.core.effects import ControlService
from runbooks.core.fleet import FleetHost
from runbooks.core.model import ServiceState
from runbooks.hosts.facts import Clock
from runbooks.hosts.log import Log
from runbooks.hosts.script import Answer
from runbooks.hosts.services.manager import WithoutUnits


class ByPlatform(WithoutUnits):
    """See `ServiceManager`. What runs is seen in the list of processes alone."""

    free_text = False
    own_groups = ()

    def ask(self, host: FleetHost, app: str, services: Sequence[str]) -> Mapping[str, str]:
        return {}

    def parse(
        self, host: FleetHost, app: str, answers: Mapping[str, Answer], clock: Clock
    ) -> Mapping[str, ServiceState]:
        return {}

    def control(self, host: FleetHost, effect: ControlService) -> str:
        """An undo may ask for it, of a run when the host had another service manager."""
        return "echo 'celery_service_manager is none: its platform starts and stops it' >&2; exit 1"

    def environment(self, host: FleetHost) -> str:
        return ""

    def logs(self, host: FleetHost, services: Sequence[str]) -> Sequence[Log]:
        return ()

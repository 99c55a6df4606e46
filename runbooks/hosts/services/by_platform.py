"""Services that a platform starts, such as Kubernetes or a Procfile: checked, never controlled."""

from collections.abc import Mapping, Sequence

from runbooks.core.effects import ControlService
from runbooks.core.fleet import FleetHost
from runbooks.core.model import ServiceState
from runbooks.hosts.facts import Clock
from runbooks.hosts.log import Log
from runbooks.hosts.script import Answer
from runbooks.hosts.services.manager import WithoutUnits

_CANNOT = (
    "echo 'only its platform can start and stop it (celery_service_manager: none)' >&2; exit 1"
)


class ByPlatform(WithoutUnits):
    """See `ServiceManager`. Only the list of processes shows which services run."""

    free_text = False
    own_groups = ()

    def ask(self, host: FleetHost, app: str, services: Sequence[str]) -> Mapping[str, str]:
        return {}

    def parse(
        self, host: FleetHost, app: str, answers: Mapping[str, Answer], clock: Clock
    ) -> Mapping[str, ServiceState]:
        return {}

    def control(self, host: FleetHost, effect: ControlService) -> str:
        """Fail. The undo of an older run may ask for it, if the host had another manager then."""
        return _CANNOT

    def environment(self, host: FleetHost) -> str:
        return ""

    def logs(self, host: FleetHost, services: Sequence[str]) -> Sequence[Log]:
        return ()

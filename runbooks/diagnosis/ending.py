"""What ends a process of somebody else's for good, or lets it go on, as a command for its host."""

from collections.abc import Iterable

from runbooks.core.census import Manager, StartedBy


def end_of(manager: Manager | None, name: str, pids: Iterable[int]) -> str:
    """What ends these processes for good, as far as that is known; `manager` and `name` are those
    of `StartedBy`.
    """
    match manager:
        case Manager.SYSTEMD:
            return f"sudo systemctl disable --now {name}"
        case Manager.USERS_SYSTEMD:
            unit, _, uid = name.partition(" of user ")
            return (
                f"sudo -u '#{uid}' XDG_RUNTIME_DIR=/run/user/{uid} systemctl --user disable --now"
                f" {unit}"
            )
        case Manager.DOCKER | Manager.PODMAN:
            return f"sudo {manager.value} stop {name.removeprefix('container ')}"
        case Manager.SUPERVISORD:
            return (
                "sudo supervisorctl stop, with the name that sudo supervisorctl status shows beside"
                " its pid"
            )
        case Manager.CONTAINER:
            return "whatever runs that container has to stop it"
    return f"sudo kill -TERM {' '.join(map(str, pids))}"


def ended_by(by: StartedBy, *pids: int) -> str:
    """The same, of what a row says who runs it."""
    return end_of(by.manager, by.name, pids)

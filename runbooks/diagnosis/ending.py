"""The command that ends a process of another owner for good, on its host."""

from collections.abc import Iterable

from runbooks.core.census import Manager, StartedBy


def end_of(manager: Manager | None, name: str, pids: Iterable[int]) -> str:
    """Return what ends these processes for good, as far as that is known.

    `manager` and `name` are those of `StartedBy`.
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
                "sudo supervisorctl stop, with the name that sudo supervisorctl status shows for"
                " its pid"
            )
        case Manager.CONTAINER:
            return "stop that container by what runs it"
    return f"sudo kill -TERM {' '.join(map(str, pids))}"


def ended_by(by: StartedBy, *pids: int) -> str:
    """Return the same for the runner of a row."""
    return end_of(by.manager, by.name, pids)

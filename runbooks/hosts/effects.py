"""Effects on a host as shell fragments; each can be killed at any instant and run again."""

import base64
from pathlib import PurePosixPath

from runbooks.core.effects import ControlService, Effect, SetEnvironment, WriteFile, sha256
from runbooks.core.envfile import edit_environment, read_environment
from runbooks.core.errors import StalePlan
from runbooks.core.model import FileState
from runbooks.core.settings import FleetHost
from runbooks.hosts.facts import service_command
from runbooks.hosts.script import heredoc, quote

STALE = 7


def as_write(effect: SetEnvironment, actual: FileState) -> WriteFile:
    """The write that sets the variables in the file as it is now; its mode stays.

    Raises StalePlan when a variable is neither what was seen nor what is wanted.
    """
    text = (actual.content or b"").decode()
    found = read_environment(text)
    for name, value in effect.values.items():
        if found.get(name) not in (effect.replaces.get(name), value):
            raise StalePlan(f"{effect.path}: {name} has changed since it was looked at", "run the command again")
    content = edit_environment(text, effect.values).encode()
    return WriteFile(effect.path, content, actual.mode or 0o640, sha256(actual.content))


def fragment(host: FleetHost, effect: Effect) -> str:
    """The shell fragment that carries an effect out; exit code 7 says the host is not as it was seen."""
    match effect:
        case WriteFile():
            return _write(effect)
        case ControlService(service=service, action="restart"):
            return f"{service_command(host, 'stop', service)} && {service_command(host, 'start', service)}"
        case ControlService(service=service, action=action):
            return service_command(host, action, service)
    raise TypeError(f"{type(effect).__name__} is not an effect on a host")


def _write(effect: WriteFile) -> str:
    """Write beside the target, flush, then rename: a reader sees the old file or the new one, whole.

    The temporary name is fixed, so what a killed run left is written over by the next; cron and systemd ignore it.
    """
    path = PurePosixPath(effect.path)
    new = str(path.parent / f".{path.name}.celery-runbooks")
    guard = (
        f"path={quote(effect.path)} new={quote(new)} dir={quote(str(path.parent))}\n"
        '[ -d "$dir" ] || { echo "the directory $dir does not exist" >&2; exit 1; }\n'
        'now=absent; [ ! -e "$path" ] || { now=$(sha256sum <"$path") || exit 1; now=${now%% *}; }\n'
        f"case $now in {effect.replaces}|{sha256(effect.content)}) ;; "
        f'*) echo "$path has changed since it was looked at" >&2; exit {STALE};; esac\n'
    )
    if effect.content is None:
        return guard + 'rm -f "$path" "$new" && sync "$dir"'
    return (
        guard + f'base64 -d >"$new" {heredoc(base64.encodebytes(effect.content).decode())}\n'
        '[ $? -eq 0 ] || exit 1\n[ ! -e "$path" ] || chown --reference="$path" "$new" || exit 1\n'
        f'chmod {effect.mode:o} "$new" && sync "$new" && mv -f "$new" "$path" && sync "$dir"'
    )

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
    content = actual.content or b""
    found = read_environment(content.decode(errors="replace"))
    for name, value in effect.values.items():
        if found.get(name) not in (effect.replaces.get(name), value):
            raise StalePlan(f"{effect.path}: {name} has changed since it was looked at", "run the command again")
    text = edit_environment(content.decode(errors="surrogateescape"), effect.values)  # other bytes stay as they are
    return WriteFile(effect.path, text.encode(errors="surrogateescape"), actual.mode or 0o640, sha256(actual.content))


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

    The temporary name is fixed, so what a killed run left is removed by the next; cron and systemd ignore it. It is
    made anew (`set -C`), for the directory may be another user's, who could put a link there. The file behind a link
    is written; a link to anything else (a masked unit's to /dev/null) is replaced.
    """
    path = PurePosixPath(effect.path)
    new = str(path.parent / f".{path.name}.celery-runbooks")
    guard = (
        f"path={quote(effect.path)} new={quote(new)} dir={quote(str(path.parent))}\n"
        'if [ -L "$path" ] && [ -f "$path" ]; then\n'
        'path=$(readlink -f "$path") dir=${path%/*}/ new=$dir.${path##*/}.celery-runbooks\nfi\n'
        '[ -d "$dir" ] || { echo "the directory $dir does not exist" >&2; exit 1; }\n'
        'now=absent; [ ! -e "$path" ] || { now=$(sha256sum <"$path") || exit 1; now=${now%% *}; }\n'
        f"case $now in {effect.replaces}|{sha256(effect.content)}) ;; "
        f'*) echo "$path has changed since it was looked at" >&2; exit {STALE};; esac\n'
    )
    if effect.content is None:
        return guard + 'rm -f "$path" "$new" && sync "$dir"'
    content = heredoc(base64.encodebytes(effect.content).decode())
    return (
        guard + f'umask 077; rm -f "$new"; set -C\nbase64 -d >"$new" {content}\n'
        '[ $? -eq 0 ] || exit 1\n[ ! -e "$path" ] || chown --reference="$path" "$new" || exit 1\n'
        f'chmod {effect.mode:o} "$new" && sync "$new" && mv -f "$new" "$path" && sync "$dir"'
    )

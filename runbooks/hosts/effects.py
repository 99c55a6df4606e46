"""Effects on a host as shell fragments; each can be killed at any instant and run again."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from runbooks.core.effects import (
    ControlService,
    Effect,
    EnableService,
    EndProcesses,
    ReloadUnits,
    SetEnvironment,
    WriteFile,
    sha256,
)  # fmt: skip
from runbooks.core.envfile import edit_environment, read_environment
from runbooks.core.errors import StalePlan
from runbooks.core.fleet import FleetHost, unit_of
from runbooks.core.model import FileState
from runbooks.hosts.facts import service_command
from runbooks.hosts.script import quote, say

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
    new = None if effect.was_absent and not text else text.encode(errors="surrogateescape")
    return WriteFile(effect.path, new, actual.mode or 0o640, sha256(actual.content), changed_at=effect.changed_at)


def fragments(host: FleetHost, effects: Mapping[str, Effect]) -> dict[str, str]:
    """The fragment of each effect; of neighbours after which systemd has to read its units again, the last does it.

    Before the first unit is put in place, all of them are judged together.
    """
    followers = [*effects.values(), None][1:]
    units = {
        name: effect for name, effect in effects.items() if isinstance(effect, WriteFile) and effect.check == "unit"
    }
    together = {next(iter(units)): _judge_together(units.values())} if len(units) > 1 else {}
    return {
        name: fragment(host, effect, reload=not isinstance(follower, _RELOADING))
        if isinstance(effect, _RELOADING)
        else together.get(name, "") + fragment(host, effect)
        for (name, effect), follower in zip(effects.items(), followers, strict=True)
    }


_RELOADING = (ReloadUnits, EnableService)


def fragment(host: FleetHost, effect: Effect, *, reload: bool = True) -> str:
    """The shell fragment that carries an effect out; exit code 7 says the host is not as it was seen.

    Without `reload` systemd goes on with the units as it knows them.
    """
    match effect:
        case WriteFile():
            return _write(effect)
        case ControlService(service=service, action="restart") if not host.has_systemd:
            return _restart(host, service)
        case ControlService(service=service, action=action) if host.has_systemd and action != "stop":
            unit = quote(unit_of(service))  # one that failed too often is not started before it is forgiven
            forgive = f"systemctl reset-failed -- {unit} 2>/dev/null\n"
            return forgive + (_start(unit) if action == "start" else service_command(host, action, service))
        case ControlService(service=service, action=action):
            return service_command(host, action, service)
        case ReloadUnits():
            return "systemctl daemon-reload" if reload else ":"
        case EnableService(service=service, enabled=enabled):
            options = "--quiet" if reload else "--quiet --no-reload"
            return f"systemctl {options} {'enable' if enabled else 'disable'} -- {quote(unit_of(service))}"
        case EndProcesses():
            return _end(effect, host.settings.stop_timeout)
    raise TypeError(f"{type(effect).__name__} is not an effect on a host")


def _restart(host: FleetHost, service: str) -> str:
    """Stop, then start once the process that ran is gone: `celery multi stop` and a plain `kill` do not wait for it.

    Started beside it, the new one would take its pid file for another worker's and end, and then so would the old one.
    **Source:** proc(5), `ShdPnd` in `/proc/PID/status`: a mask of the signals that wait; TERM is 0x4000.
    """
    return (
        f"{_ALIVE}one=; end=$(( $(date +%s) + {int(host.settings.stop_timeout)} ))\n"
        f"pid=$( {service_command(host, 'status', service)} 2>/dev/null | sed -n '/^[0-9][0-9]*$/{{p;q;}}' )\n"
        '[ -z "$pid" ] || ! read -r stat 2>/dev/null <"/proc/$pid/stat" || { set -- ${stat##*) }; one=$pid:${20}; }\n'
        f"{service_command(host, 'stop', service)} || exit\n"
        'while [ -n "$one" ] && alive "$one"; do [ "$(date +%s)" -lt "$end" ] || {\n'
        'case $(grep ShdPnd "/proc/${one%:*}/status") in\n'
        '*[4-7c-f]???) what="TERM is pending, for it hangs or is halted";;\n'
        '*) what="no TERM is pending: if it was sent, the process took it, and ends with its tasks";; esac\n'
        'echo "it was stopped and still runs (pid ${one%:*}), so no other is started beside it; $what;" \\\n'
        '"nothing starts it after its end, so run this again then" >&2; exit 1; }\n'
        "sleep 0.2; done\n"
        f"{service_command(host, 'start', service)}"
    )


def _start(unit: str) -> str:
    """Start a unit; a job that is under way for it may hang, as with Type=forking, so nobody waits for that one."""
    return (
        f'job=$(systemctl show --property=Job --value -- {unit}); wait=; [ -z "${{job#0}}" ] || wait=--no-block\n'
        f"systemctl start $wait -- {unit}"
    )


def _write(effect: WriteFile) -> str:
    """Write beside the target, flush, then rename: a reader sees the old file or the new one, whole.

    The new file is made in a folder of root's own inside the target's: there nobody else can put a link in its place
    while it is given its owner and mode, and nobody can move that folder elsewhere (rename(2)). The shell stands in
    the folders that it works in, so it does not matter where their names lead meanwhile. The temporary name is fixed,
    so what a killed run left is removed by the next; cron, logrotate and systemd ignore it.
    """
    guard = (
        f"path={quote(effect.path)}\n{_ENTER}"
        'now=absent; [ ! -e "./$name" ] || { now=$(sha256sum <"./$name") || exit 1; now=${now%% *}; }\n'
        f"case $now in {effect.replaces}|{sha256(effect.content)}) ;; "
        f'*) echo "$path has changed since it was looked at" >&2; exit {STALE};; esac\n'
        'own=.$name.celery-runbooks; rm -rf "./$own" || exit 1\n'
    )
    if effect.content is None:
        return guard + 'rm -f "./$name" && sync .'
    touch = "" if effect.changed_at is None else f" && touch -d @{effect.changed_at!r} ./new"
    content = say(base64.b64encode(effect.content).decode())
    return (
        guard + f"umask 077; set -C\n{_OWN_FOLDER}{content} | base64 -d >./new\n"
        "[ $? -eq 0 ] || exit 1\n"
        '[ ! -e "../$name" ] || { owner=$(stat -c %u:%g "../$name") && chown "$owner" ./new; } || exit 1\n'
        f"chmod {effect.mode:o} ./new{touch} || exit 1\n{_judge(effect.check, effect.content)}"
        'sync ./new && mv -fT ./new "../$name" && sync ..'
    )


# Enters the folder that `$path` is in, one name after the other, and leaves the file's own in `$name`. The file behind
# a link is written; a link to anything else (a masked unit's to /dev/null) is replaced. Where others than root and this
# user may put links, one leads no further than to a folder of whoever put it there: what is written on their word must
# be theirs to write. A name that was no link when it was looked at and is one now shows by its parent.
_ENTER = """[ -d "${path%/*}/" ] || { echo "the directory ${path%/*} does not exist" >&2; exit 1; }
refuse() { echo "$path leads through a link that others can change ($1): name the file that is meant" >&2; exit 1; }
rest=$path by=; cd / && here=$(stat -c %d:%i .) || exit 1
while :; do
while [ "$rest" != "${rest#/}" ]; do rest=${rest#/}; done
name=${rest%%/*} rest=${rest#"${rest%%/*}"}
if [ -L "./$name" ] && { [ -n "$rest" ] || [ -f "./$name" ]; }; then
kept=$(stat -c '%u %A' .) || exit 1
case $kept in "0 d"????-??-?* | "$(id -u) d"????-??-?*) ;;
*) of=$(stat -c %u "./$name") || exit 1; [ "$of" != 0 ] && [ "${by:-$of}" = "$of" ] || refuse "$name"; by=$of ;; esac
to=$(readlink "./$name") || exit 1; rest=$to$rest
case $rest in /*) cd / && here=$(stat -c %d:%i .) || exit 1 ;; esac
continue; fi
[ -n "$rest" ] || break
cd -P "./$name" || exit 1; was=$here; here=$(stat -c %d:%i .) || exit 1
case $name in . | ..) ;; *) [ "$(stat -c %d:%i ..)" = "$was" ] || refuse "$name" ;; esac
done
[ -z "$by" ] || [ "$(stat -c %u .)" = "$by" ] || refuse "$name"
"""
# Its mode is looked at after it was entered: an access list of the folder around it would show there.
_OWN_FOLDER = """mkdir -m 700 "./$own" && cd -P "./$own" || exit 1
[ "$(stat -c '%d:%i' ..)" = "$here" ] && [ "$(stat -c '%u %a' .)" = "$(id -u) 700" ] && [ -z "$(ls -A)" ] || {
echo "somebody else changes the folder of $path while it is written" >&2; exit 1; }
trap 'cd .. && rm -rf "./$own"' EXIT
"""


def _judge(check: str, content: bytes) -> str:
    """What a host itself thinks of a new file: shell that puts what is wrong into `said`, and refuses the file then."""
    if not check:
        return ""
    users = _users(check, content.decode(errors="replace"))
    return (
        f"{_JUDGES[check]}for user in {' '.join(map(quote, users))}; do\n"
        'id -u "$user" >/dev/null 2>&1 || said="$said the user $user does not exist here;"; done\n'
        '[ -z "$said" ] || { printf \'%s\\n\' "$said" >&2; exit 1; }\n'
    )


def _judge_together(units: Iterable[WriteFile]) -> str:
    """Asks systemd about several new units at once, which costs a host no more than one of them.

    Where it finds anything, each is judged by itself after that: then it is known which one is meant.
    """
    contents = {PurePosixPath(unit.path).name: unit.content or b"" for unit in units}
    copies = "".join(
        f'{say(base64.b64encode(content).decode())} | base64 -d >"$dir"/all/{quote(name)} || exit 1\n'
        for name, content in contents.items()
    )
    paths = " ".join(f'"$dir"/all/{quote(name)}' for name in contents)
    named = "|".join(f"*{quote(f'{name}:')}*" for name in contents)
    verdict = f"said=$({_VERIFY} {paths} 2>&1) &&\ncase $said in {named}) ;; *) : >{_ALL_WELL};; esac\n"
    return f'mkdir "$dir/all" || exit 1\n{copies}{verdict}'


def _users(check: str, content: str) -> Sequence[str]:
    """Whom a unit or a cron file runs something as: systemd misses a user only at the start, cron never says so.

    **Source:** systemd.exec(5), `User=`; crontab(5): the sixth field in a system's table, the second after `@daily`.
    """
    if check == "unit":
        found = re.findall(r"^User=(.+)$", content, re.MULTILINE)
    elif check == "cron":
        entries = (line for line in content.splitlines() if not re.match(r"\s*(#|$|[A-Za-z_]+\s*=)", line))
        found = [user for entry in entries for user in entry.split()[1 if entry.lstrip().startswith("@") else 5 :][:1]]
    else:
        found = []
    return tuple(dict.fromkeys(found))


# systemd reads a unit's kind from its name, so it is shown a copy with the right one, in the script's own folder.
# Whatever it says of this unit counts, its warnings too: a key that it does not know is ignored by some versions with
# exit code 0.
_VERIFY = "LC_ALL=C systemd-analyze verify --man=no --recursive-errors=no"
_ALL_WELL = '"$dir/all-are-well"'
_JUDGE_UNIT = f"""
said=; [ -e {_ALL_WELL} ] || {{
cp ./new "$dir/${{path##*/}}" || exit 1
said=$({_VERIFY} "$dir/${{path##*/}}" 2>&1) &&
case $said in *"${{path##*/}}:"*) said=$(printf '%s\n' "$said" | grep -F -e "${{path##*/}}:");; *) said=;; esac
}}
"""
# cron says nothing of a file that is not root's: it just never runs it.
_JUDGE_CRON = """
said=; [ "$(stat -c %u ./new)" = 0 ] || said='cron runs only files that belong to root;'
"""
# logrotate tells a mistake among much else, and exits with 0.
_JUDGE_LOGROTATE = """
if command -v logrotate >/dev/null; then said=$(LC_ALL=C logrotate -d ./new 2>&1 | grep '^error:')
else said='logrotate is not installed on this host'; fi
"""
_JUDGES = {"unit": _JUDGE_UNIT, "cron": _JUDGE_CRON, "logrotate": _JUDGE_LOGROTATE}


# Whether the process of `PID:START` runs, START being its start in clock ticks: a pid is another's sooner or later.
_ALIVE = (
    'alive() { read -r stat 2>/dev/null <"/proc/${1%:*}/stat" || return 1; set -- "$1" ${stat##*) }; '
    '[ "$2" != Z ] && [ "${21}" = "${1#*:}" ]; }\n'
)


def _end(effect: EndProcesses, patience_s: float) -> str:
    """TERM to each process that is still the one that was seen, so that a worker finishes its tasks; KILL where it may.

    Only to those whose parent is not among them: a worker ends its own children, and TERM to these loses their tasks.
    """
    force = (
        'for one in $left; do kill -KILL "${one%:*}"; done\n'
        '[ -z "$left" ] || echo "did not end by themselves, and were killed:$left"'
    )
    leave = '[ -z "$left" ] || { echo "were told to end, and still run, maybe a task:$left" >&2; exit 1; }'
    listed = " ".join(f"{pid}:{ticks}" for pid, ticks in effect.processes)
    return (
        f"{_ALIVE}"
        'parent() { read -r stat <"/proc/${1%:*}/stat"; set -- ${stat##*) }; echo "$2"; }\n'
        f'all="{listed}"; left=$all\n'
        'for one in $all; do alive "$one" || continue; case " $all" in *" $(parent "$one"):"*) ;; '
        '*) kill -TERM "${one%:*}";; esac; done\n'
        f"end=$(( $(date +%s) + {int(patience_s)} ))\n"
        'while :; do left=; for one in $all; do ! alive "$one" || left="$left $one"; done\n'
        '[ -n "$left" ] && [ "$(date +%s)" -lt "$end" ] || break; sleep 0.2; done\n'
        f"{force if effect.kill else leave}"
    )

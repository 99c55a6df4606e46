"""Build the fleet of the inventory's variables: every problem with its line, all at once."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any, get_args

from pydantic import BaseModel, SecretStr, ValidationError

from runbooks.core.command import Command
from runbooks.core.errors import InventoryError, SeveralApplications, UsageError
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.redaction import also_secret, keep_secrets_in, keep_webhook
from runbooks.core.rules import QueueRule, destination
from runbooks.core.settings import (
    PREFIX,
    STATE_DIRECTORY,
    TEMPLATES_DIRECTORY,
    AppSettings,
    BrokerOptions,
    Canary,
    Commands,
    CronEntry,
    DockerSettings,
    ExpectedQueue,
    HostSettings,
    MonitorSettings,
    NotifyUrl,
    Probe,
    TaskCall,
    Thresholds,
    Worker,
    absolute,
)
from runbooks.core.validation import plainly
from runbooks.core.wording import did_you_mean, enumerated
from runbooks.inventory.membership import APP, KNOWN, like_app, members
from runbooks.inventory.patterns import select_hosts
from runbooks.inventory.read import Host, Inventory
from runbooks.inventory.sources import is_read_with
from runbooks.inventory.values import Renderer, Values
from runbooks.inventory.variables import Variable, place
from runbooks.inventory.yaml import Vaulted

_SECRETS = tuple(
    PREFIX + name
    for name, field_info in AppSettings.model_fields.items()
    if {SecretStr, NotifyUrl} & {field_info.annotation, *get_args(field_info.annotation)}
)
"""The variables whose values are never shown."""


def limited_fleet(
    inventory: Inventory, limit: str | None, app: str | None = None, *, only_looks: bool = False
) -> Fleet:
    """Build the fleet of the hosts that `--limit` selects, and that have this application where it is named.

    A verb that `only_looks` goes without hosts that lack variables.
    Raises UsageError for a pattern that selects no host, which says so where it names a worker or a queue instead.
    """
    try:
        selected = select_hosts(inventory, limit)
    except UsageError:
        with suppress(InventoryError):
            _require_no_worker(build_fleet(inventory, select_hosts(inventory, None), app), limit or "")
        raise
    return build_fleet(inventory, selected, app, only_looks=only_looks)


def _require_no_worker(fleet: Fleet, limit: str) -> None:
    """Raise UsageError where `--limit` names a worker, its node or a queue."""
    by_queue = [worker.name for worker in fleet.all_workers if limit in worker.queues]
    if any(limit in (node, worker.name, worker.node, worker.known_as) for node, worker in fleet.workers):
        raise UsageError(f"--limit takes hosts and groups, and {limit!r} is a worker", _chosen_by(limit))
    if by_queue:
        problem = f"--limit takes hosts and groups, and {limit!r} is a queue that {enumerated(by_queue)} consume"
        problem += "s" if len(by_queue) == 1 else ""
        raise UsageError(problem, f"{Command('queues', limit)} shows the queue; {_chosen_by(','.join(by_queue))}")


def _chosen_by(patterns: str) -> str:
    return f"diagnose, verify, restart-workers and tail-logs take workers: --worker {quote(patterns)}"


def build_fleet(
    inventory: Inventory, selected: tuple[str, ...], named: str | None = None, *, only_looks: bool = False
) -> Fleet:
    """Validate every host's variables and gather the application's fleet, restricted to the `selected` hosts.

    Where several applications are in the inventory, `named` is the one that is meant. A verb that `only_looks` goes
    without hosts that lack variables.

    Raises InventoryError with all problems of all hosts. Hosts without `celery_app` are not part of the fleet.
    """
    problems: dict[str, None] = {}
    built: list[tuple[AppSettings, FleetHost]] = []
    unchecked: dict[str, tuple[str, ...]] = {}
    renderer = Renderer(inventory)
    for host, values in members(inventory, renderer, problems):
        if named is not None and values.get(APP) != named:
            continue
        _keep_secrets(inventory.hosts[host.name], values)
        if settings := _validate(inventory, host, values, problems):
            own = _with_own_probes(inventory, host, settings[1], problems)
            lacking = tuple(name for one in own.lacks if (name := f"{PREFIX}{one}") not in host.variables)
            if lacking and only_looks:
                unchecked[host.name] = lacking
            else:
                told = (f"{host.place}: host '{host.name}' lacks the variable '{name}'" for name in lacking)
                problems.update(dict.fromkeys(told))
            built.append((settings[0], FleetHost(host.name, host.groups, own, values)))
    if named is not None and not built and not problems:
        problems[f"{inventory.name}: no host has the application {named}"] = None
    elif not built and not problems:
        problems[
            f"{inventory.name}: no host has {APP}, so there is nothing to look at{like_app(inventory.hosts.values())}"
        ] = None
    if not problems:
        _require_one_application(inventory.name, built)
    for app, host_of_app in built[1:]:
        problems.update(_disagreement(inventory.name, built[0][0], built[0][1].name, app, host_of_app.name))
    if built:
        consumed = {queue for _, host in built for worker in host.settings.workers for queue in worker.queues}
        consumed |= built[0][0].queues.keys()
        problems.update(dict.fromkeys(_lost_moves(inventory, built[0][1].name, built[0][0].queue_rules, consumed)))
        problems.update(dict.fromkeys(_nameless_master(inventory, built[0][0], built[0][1].name)))
        problems.update(dict.fromkeys(_lost_tunnel(inventory, built[0][0], [host for _, host in built])))
        for url in built[0][0].notify:
            keep_webhook(url.get_secret_value())
    if problems:
        raise InventoryError(list(problems), _advice(problems))
    checked = [host for _, host in built if host.name not in unchecked]
    workers = tuple(worker for host in checked for worker in host.settings.workers)
    state, own_templates = (built[0][1].variables.get(name) for name in (STATE_DIRECTORY, TEMPLATES_DIRECTORY))
    nodes = tuple(host.node(worker) for host in checked for worker in host.settings.workers)
    by_name = {host.name: host for _, host in built}
    fleet = Fleet(
        _by_their_nodes(built[0][0], [host for _, host in built if host.name in unchecked]),
        tuple(host for host in checked if host.name in selected and not host.settings.is_empty),
        workers,
        Path(state) if state else None,
        nodes,
        templates_directory=Path(own_templates) if own_templates else None,
        tunnel=by_name.get(built[0][0].broker_tunnel or ""),
        monitor_host=_monitor_host(inventory, built[0][0], by_name),
        unchecked={name: lacking for name, lacking in unchecked.items() if name in selected},
    )
    if unknown := list(_unknown_names(inventory, fleet, list(by_name))):
        raise InventoryError(unknown, "nothing was looked at or changed; correct the inventory and run again")
    return fleet


def _by_their_nodes(app: AppSettings, unchecked: Sequence[FleetHost]) -> AppSettings:
    """With the workers of hosts that are not looked at as nodes that answer somewhere, and their queues."""
    workers = [(host, worker) for host in unchecked for worker in host.settings.workers]
    if not workers:
        return app
    nodes = (re.sub("%[hnd]", "*", worker.node or host.node(worker)) for host, worker in workers)
    queues = {queue: ExpectedQueue() for _, worker in workers for queue in worker.queues} | app.queues
    return app.model_copy(update={"nodes": (*app.nodes, *nodes), "queues": queues})


_EXAMPLES = {AppSettings: "the-application-the-same-on-all-its-hosts", HostSettings: "a-host"}
"""The part of docs/inventory.md that has an example of each of these variables."""
ON_HOSTS = f"docs/inventory.md#{_EXAMPLES[HostSettings]}"


def _advice(problems: Iterable[str]) -> str:
    """Where examples of the variables are that the problems are about."""
    words = {word for problem in problems for word in re.findall(rf"{PREFIX}\w+", problem)}
    pages = dict.fromkeys(f"docs/inventory.md#{_EXAMPLES[KNOWN[name]]}" for name in sorted(words & KNOWN.keys()))
    examples = f"; {' and '.join(pages)} has an example of each" if len(pages) == 1 else ""
    examples = f"; {' and '.join(pages)} have examples" if len(pages) > 1 else examples
    return f"nothing was looked at or changed; correct the inventory and run again{examples}"


def _keep_secrets(host: Host, values: Values) -> None:
    """Never show what stands in the inventory under the name of a secret; what is rendered follows when it is."""
    with suppress(LookupError, InventoryError):  # which is told where it is validated
        names = values[f"{PREFIX}secret_names"]
        if isinstance(names, list):
            also_secret(name for name in names if isinstance(name, str))
    for name, variable in host.variables.items():
        keep_secrets_in(_as_written(variable.value), name)


def _as_written(value: Any) -> Any:
    """A value without what is rendered or decrypted."""
    if isinstance(value, Mapping):
        return {key: _as_written(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_written(item) for item in value]
    return "" if isinstance(value, Vaulted) or (isinstance(value, str) and "{{" in value) else value


def _monitor_host(inventory: Inventory, app: AppSettings, hosts: Iterable[str]) -> str | None:
    """The first host of the fleet that `celery_monitor` names, by its own name or its group's."""
    name = app.monitor.host
    named = inventory.groups.get(name or "", {name: None})
    return next((host for host in hosts if host in named), None)


def _unknown_names(inventory: Inventory, fleet: Fleet, hosts: Sequence[str]) -> Iterator[str]:
    """Names of queues and hosts that mean nothing in this inventory."""
    variables = inventory.hosts[hosts[0]].variables
    for queue in fleet.app.thresholds.queues:
        if queue not in fleet.queues:
            variable = variables["celery_thresholds"]
            where = _deep_place(variable, ["queues", queue])
            yield f"{where}: celery_thresholds.queues: no worker consumes '{queue}'{did_you_mean(queue, fleet.queues)}"
    if (canary := fleet.app.canary) and canary.queue not in fleet.consumed:
        variable = variables["celery_canary"]
        where = _deep_place(variable, ["queue"])
        hint = did_you_mean(canary.queue, fleet.consumed)
        yield f"{where}: celery_canary.queue: no worker consumes '{canary.queue}'{hint}"
    if (name := fleet.app.monitor.host) and not fleet.monitor_host:
        variable = variables["celery_monitor"]
        where = _deep_place(variable, ["host"])
        hint = did_you_mean(name, (*inventory.groups, *hosts))
        yield f"{where}: celery_monitor.host: no host or group of the application is called '{name}'{hint}"


def _nameless_master(inventory: Inventory, app: AppSettings, host: str) -> Iterator[str]:
    if app.broker_url.get_secret_value().lower().startswith("sentinel:") and not app.broker_options.master_name:
        where = f"{inventory.hosts[host].variables['celery_broker_url'].place}: celery_broker_url"
        yield f"{where}: behind Sentinels celery_broker_options needs the master_name"


def _lost_tunnel(inventory: Inventory, app: AppSettings, hosts: Sequence[FleetHost]) -> Iterator[str]:
    name, names = app.broker_tunnel, [host.name for host in hosts]
    if name and name not in names:
        variable = inventory.hosts[names[0]].variables["celery_broker_tunnel"]
        where = f"{variable.place}: celery_broker_tunnel"
        yield f"{where}: '{name}' is no host of this fleet{did_you_mean(name, names)}"


def _with_own_probes(
    inventory: Inventory, host: Host, settings: HostSettings, problems: dict[str, None]
) -> HostSettings:
    """The settings without the probes whose pattern leaves this host out."""
    own = []
    for n, probe in enumerate(settings.probes):
        try:
            if host.name in select_hosts(inventory, probe.hosts):
                own.append(probe)
        except UsageError as error:
            where = _deep_place(host.variables[f"{PREFIX}probes"], [n, "hosts"])
            told = error.problem.removeprefix("--limit ")
            problems[f"{where}: {PREFIX}probes.{n}.hosts: {told}"] = None
    return settings.model_copy(update={"probes": tuple(own)})


def _require_one_application(inventory: str, built: Sequence[tuple[AppSettings, FleetHost]]) -> None:
    hosts = {app.app: host.name for app, host in reversed(built)}
    if len(hosts) > 1:
        (first, one), (second, other), *_ = reversed(hosts.items())
        problem = f"{inventory}: {one} has {first}, and {other} has {second}: choose one with -A {first}"
        raise SeveralApplications(problem, reversed(hosts))


def _disagreement(inventory: str, app: AppSettings, name: str, other: AppSettings, other_name: str) -> dict[str, None]:
    differing = ", ".join(PREFIX + key for key in AppSettings.model_fields if getattr(app, key) != getattr(other, key))
    text = f"{inventory}: {name} and {other_name} differ in {differing}, but an inventory describes one application"
    return {text: None} if differing and app.app == other.app else {}


def _lost_moves(inventory: Inventory, host: str, rules: tuple[QueueRule, ...], consumed: set[str]) -> Iterator[str]:
    for i, rule in enumerate(rules):
        queue, _ = destination(rule.requeue_to or "")
        if queue and queue not in consumed:
            variable = inventory.hosts[host].variables[f"{PREFIX}queue_rules"]
            where = _deep_place(variable, [i, "requeue_to"])
            hint = did_you_mean(queue, sorted(consumed))
            yield f"{where}: {PREFIX}queue_rules.{i}.requeue_to: no worker consumes '{queue}'{hint}"


def _validate(
    inventory: Inventory, host: Host, values: Values, problems: dict[str, None]
) -> tuple[AppSettings, HostSettings] | None:
    given = _rendered(host, values, problems)
    built: list[Any] = []
    for model in (AppSettings, HostSettings):
        try:
            own = {name.removeprefix(PREFIX): value for name, value in given.items() if KNOWN.get(name) is model}
            built.append(model.model_validate(own))
        except ValidationError as error:
            problems.update(dict.fromkeys(_located(host, given, error)))
    problems.update(dict.fromkeys(_directory_problems(inventory, host, given)))
    return (built[0], built[1]) if len(built) == 2 else None


def _rendered(host: Host, values: Values, problems: dict[str, None]) -> dict[str, Any]:
    """The variables that mean something to this tool, but for those that cannot be had or would show a secret."""
    given = {}
    for name in sorted(host.variables):
        if not name.startswith((PREFIX, "ansible_", STATE_DIRECTORY, TEMPLATES_DIRECTORY)):
            continue
        try:
            value = values[name]
        except InventoryError as error:
            problems.update(dict.fromkeys(error.problems))
            continue
        if values.is_secret(name) and not name.startswith("ansible_") and name not in _SECRETS:
            what = f"vault-encrypted text would be shown; it belongs into {' or '.join(_SECRETS)}, or stays on the host"
            problems[f"{host.variables[name].place}: {name}: {what}"] = None
            continue
        given[name] = value
    return given


def _directory_problems(inventory: Inventory, host: Host, given: Mapping[str, Any]) -> Iterator[str]:
    for name in (STATE_DIRECTORY, TEMPLATES_DIRECTORY):
        if name not in given:
            continue
        value, where = given[name], f"{host.variables[name].place}: {name}"
        try:
            absolute(value if isinstance(value, str) else "")
        except ValueError as error:
            yield f"{where}: {error}"
        else:
            if name == TEMPLATES_DIRECTORY and not Path(value).is_dir():
                yield f"{where}: there is no directory {value}"
            for folder in inventory.whole_folders:
                if is_read_with(folder, Path(value)):
                    yield f"{where}: it is in {folder}, and what is in there is read as inventories"


def _located(host: Host, given: Mapping[str, Any], error: ValidationError) -> Iterator[str]:
    rendered = all(name in given for name in host.variables if name.startswith(PREFIX))
    for detail in error.errors(include_url=False, include_context=False):
        if not detail["loc"] and not rendered:
            continue  # it is about variables together, and of one of them it was told that it cannot be had
        name, *path = detail["loc"] or ("service_manager",)
        variable = host.variables.get(f"{PREFIX}{name}")
        where = ".".join(map(str, (f"{PREFIX}{name}", *path)))
        if variable is None:
            yield f"{host.place}: host '{host.name}' lacks the variable '{where}'"
            continue
        if f"{PREFIX}{name}" not in given:
            continue  # it is there but could not be rendered, which has been told
        text = plainly(detail)
        if detail["type"] == "extra_forbidden":
            text = f"unknown key{did_you_mean(str(path[-1]), _keys_of(str(name)))}"
        elif not path and _is_list_as_text(given[f"{PREFIX}{name}"]):
            text += "; this is text: in INI write True, False and None, in YAML leave out the quotes"
        yield f"{_deep_place(variable, path)}: {where}: {text}"


def _is_list_as_text(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("[", "{"))


def _keys_of(name: str) -> list[str]:
    """The keys that a variable's maps may have."""
    nested: dict[str, type[BaseModel]] = {
        "workers": Worker, "commands": Commands, "docker": DockerSettings, "cron": CronEntry, "queue_rules": QueueRule,
        "thresholds": Thresholds, "canary": Canary, "broker_options": BrokerOptions, "shortcuts": TaskCall,
        "probes": Probe, "queues": ExpectedQueue, "monitor": MonitorSettings,
    }  # fmt: skip
    return list(nested[name].model_fields) if name in nested else []


def _deep_place(variable: Variable, path: Sequence[str | int]) -> str:
    """Where the innermost part of a variable's value stands that the path reaches."""
    line, value = variable.line, variable.value
    for key in path:
        try:
            line, value = value.lines[key], value[key]
        except (AttributeError, LookupError, TypeError):  # the rest of the path came out of Jinja
            break
    return place(variable.path, line)

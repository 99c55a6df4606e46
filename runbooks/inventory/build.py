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

_EXAMPLES = {AppSettings: "the-application-the-same-on-all-its-hosts", HostSettings: "a-host"}
"""The part of docs/inventory.md that has an example of each of these variables."""

ON_HOSTS = f"docs/inventory.md#{_EXAMPLES[HostSettings]}"
_NESTED: dict[str, type[BaseModel]] = {
    "workers": Worker,
    "commands": Commands,
    "docker": DockerSettings,
    "cron": CronEntry,
    "queue_rules": QueueRule,
    "thresholds": Thresholds,
    "canary": Canary,
    "broker_options": BrokerOptions,
    "shortcuts": TaskCall,
    "probes": Probe,
    "queues": ExpectedQueue,
    "monitor": MonitorSettings,
}
"""The records of the maps in a variable, by its name."""

Built = tuple[AppSettings, FleetHost]
"""A host of the fleet, and what it has of the application's variables."""

_SECRETS = tuple(
    PREFIX + name
    for name, field_info in AppSettings.model_fields.items()
    if {SecretStr, NotifyUrl} & {field_info.annotation, *get_args(field_info.annotation)}
)
"""The variables whose values are never shown."""


def limited_fleet(
    inventory: Inventory, limit: str | None, app: str | None = None, *, only_looks: bool = False
) -> Fleet:
    """Build the fleet of the hosts that `--limit` selects, and of the application if it is named.

    A verb that `only_looks` skips hosts that lack variables. Raises UsageError for a pattern that
    selects no host; its advice differs if the pattern names a worker or a queue.
    """
    try:
        selected = select_hosts(inventory, limit)
    except UsageError:
        with suppress(InventoryError):
            everything = build_fleet(inventory, select_hosts(inventory, None), app)
            _require_no_worker(everything, limit or "")
        raise
    return build_fleet(inventory, selected, app, only_looks=only_looks)


def _require_no_worker(fleet: Fleet, limit: str) -> None:
    """Raise UsageError if `--limit` names a worker, its node or a queue."""
    by_queue = []
    for worker in fleet.all_workers:
        if limit in worker.queues:
            by_queue.append(worker.name)
    for node, worker in fleet.workers:
        if limit in (node, worker.name, worker.node, worker.known_as):
            raise UsageError(
                f"--limit expects hosts or groups, and {limit!r} is a worker", _chosen_by(limit)
            )
    if by_queue:
        problem = (
            f"--limit expects hosts or groups, and {limit!r} is a queue that {enumerated(by_queue)}"
            " consume"
        )
        if len(by_queue) == 1:
            problem += "s"
        raise UsageError(
            problem, f"show the queue: {Command('queues', limit)}; {_chosen_by(','.join(by_queue))}"
        )


def _chosen_by(patterns: str) -> str:
    return f"diagnose, verify, restart-workers and tail-logs accept --worker {quote(patterns)}"


def build_fleet(
    inventory: Inventory,
    selected: tuple[str, ...],
    named: str | None = None,
    *,
    only_looks: bool = False,
) -> Fleet:
    """Validate the variables of every host, and build the fleet of the `selected` hosts.

    If the inventory has several applications, `named` chooses one. A verb that `only_looks` skips
    hosts that lack variables. Hosts without `celery_app` are not part of the fleet.

    Raises InventoryError with all problems of all hosts.
    """
    problems: dict[str, None] = {}
    unchecked: dict[str, tuple[str, ...]] = {}
    built = []
    for one, lacking in _built(inventory, named, problems):
        _, host = one
        built.append(one)
        if lacking and only_looks:
            unchecked[host.name] = lacking
        else:
            its_place = inventory.hosts[host.name].place
            for name in lacking:
                problems[f"{its_place}: host '{host.name}' lacks the variable '{name}'"] = None
    if not built and not problems:
        problems[_no_application(inventory, named)] = None
    if not problems:
        _require_one_application(inventory.name, built)
    if built:
        problems.update(dict.fromkeys(_problems_together(inventory, built)))
        for url in built[0][0].notify:
            keep_webhook(url.get_secret_value())
    if problems:
        raise InventoryError(list(problems), _advice(problems))

    fleet = _fleet_of(inventory, selected, built, unchecked)
    unknown = list(_unknown_names(inventory, fleet, [host.name for _, host in built]))
    if unknown:
        raise InventoryError(
            unknown, "nothing was checked or changed; correct the inventory and run again"
        )
    return fleet


def _built(
    inventory: Inventory, named: str | None, problems: dict[str, None]
) -> Iterator[tuple[Built, tuple[str, ...]]]:
    """Yield each host of the application, and the variables that it lacks."""
    renderer = Renderer(inventory)
    for host, values in members(inventory, renderer, problems):
        if named is not None and values.get(APP) != named:
            continue
        _keep_secrets(inventory.hosts[host.name], values)
        settings = _validate(inventory, host, values, problems)
        if settings is None:
            continue
        app, own = settings
        own = _with_own_probes(inventory, host, own, problems)
        names = [f"{PREFIX}{one}" for one in own.lacks]
        lacking = tuple(name for name in names if name not in host.variables)
        yield (app, FleetHost(host.name, host.groups, own, values)), lacking


def _no_application(inventory: Inventory, named: str | None) -> str:
    if named is not None:
        return f"{inventory.name}: no host has the application {named}"
    return (
        f"{inventory.name}: no host has {APP}, so there is nothing to"
        f" check{like_app(inventory.hosts.values())}"
    )


def _problems_together(inventory: Inventory, built: Sequence[Built]) -> Iterator[str]:
    """Yield contradictions between hosts, and between hosts and the application's variables."""
    (app, first), *others = built
    for other, host in others:
        yield from _disagreement(inventory.name, app, first.name, other, host.name)
    hosts = [host for _, host in built]
    consumed = set(app.queues)
    for host in hosts:
        for worker in host.settings.workers:
            consumed.update(worker.queues)
    yield from _lost_moves(inventory, first.name, app.queue_rules, consumed)
    yield from _nameless_master(inventory, app, first.name)
    yield from _lost_tunnel(inventory, app, hosts)


def _fleet_of(
    inventory: Inventory,
    selected: tuple[str, ...],
    built: Sequence[Built],
    unchecked: Mapping[str, tuple[str, ...]],
) -> Fleet:
    app, first = built[0]
    hosts = [host for _, host in built]
    by_name = {host.name: host for host in hosts}
    not_checked = []
    for host in hosts:
        if host.name in unchecked:
            not_checked.append(host)
    workers = []
    nodes = []
    touched = []
    for host in hosts:
        if host.name in unchecked:
            continue
        for worker in host.settings.workers:
            workers.append(worker)
            nodes.append(host.node(worker))
        if host.name in selected and not host.settings.is_empty:
            touched.append(host)
    return Fleet(
        _by_their_nodes(app, not_checked),
        tuple(touched),
        tuple(workers),
        _folder(first, STATE_DIRECTORY),
        tuple(nodes),
        templates_directory=_folder(first, TEMPLATES_DIRECTORY),
        tunnel=by_name.get(app.broker_tunnel or ""),
        monitor_host=_monitor_host(inventory, app, by_name),
        unchecked={name: lacking for name, lacking in unchecked.items() if name in selected},
        has_beat=any(host.has_beat for host in hosts),
    )


def _folder(host: FleetHost, name: str) -> Path | None:
    value = host.variables.get(name)
    if not value:
        return None
    return Path(value)


def _by_their_nodes(app: AppSettings, unchecked: Sequence[FleetHost]) -> AppSettings:
    """Return the settings with workers of hosts that are not checked as nodes with their queues."""
    nodes: list[str] = []
    queues: dict[str, ExpectedQueue] = {}
    for host in unchecked:
        for worker in host.settings.workers:
            nodes.append(re.sub("%[hnd]", "*", worker.node or host.node(worker)))
            for queue in worker.queues:
                queues[queue] = ExpectedQueue()
    if not nodes:
        return app
    return app.model_copy(
        update={"nodes": (*app.nodes, *nodes), "queues": {**queues, **app.queues}}
    )


def _advice(problems: Iterable[str]) -> str:
    """Return the advice, with the pages that have examples of the variables in the problems."""
    words: set[str] = set()
    for problem in problems:
        words.update(re.findall(rf"{PREFIX}\w+", problem))
    pages = dict.fromkeys(
        f"docs/inventory.md#{_EXAMPLES[KNOWN[name]]}" for name in sorted(words & KNOWN.keys())
    )
    examples = ""
    if len(pages) == 1:
        examples = f"; {' and '.join(pages)} has an example of each"
    elif pages:
        examples = f"; {' and '.join(pages)} have examples"
    return f"nothing was checked or changed; correct the inventory and run again{examples}"


def _keep_secrets(host: Host, values: Values) -> None:
    """Never show values of variables with secret names; rendered values follow when rendered."""
    with suppress(LookupError, InventoryError):  # the validation reports it
        names = values[f"{PREFIX}secret_names"]
        if isinstance(names, list):
            also_secret(name for name in names if isinstance(name, str))
    for name, variable in host.variables.items():
        keep_secrets_in(_as_written(variable.value), name)


def _as_written(value: Any) -> Any:
    """Return a value without the parts that are rendered or decrypted."""
    if isinstance(value, Mapping):
        return {key: _as_written(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_written(item) for item in value]
    if isinstance(value, Vaulted):
        return ""
    if isinstance(value, str) and "{{" in value:
        return ""
    return value


def _monitor_host(inventory: Inventory, app: AppSettings, hosts: Iterable[str]) -> str | None:
    """Return the first host that `celery_monitor` names, by its own name or a group's."""
    name = app.monitor.host
    named = inventory.groups.get(name or "", {name: None})
    for host in hosts:
        if host in named:
            return host
    return None


def _unknown_names(inventory: Inventory, fleet: Fleet, hosts: Sequence[str]) -> Iterator[str]:
    """Yield names of queues and hosts that do not exist in this inventory."""
    variables = inventory.hosts[hosts[0]].variables
    for queue in fleet.app.thresholds.queues:
        if queue not in fleet.queues:
            variable = variables["celery_thresholds"]
            where = _deep_place(variable, ["queues", queue])
            yield (
                f"{where}: celery_thresholds.queues: no worker consumes"
                f" '{queue}'{did_you_mean(queue, fleet.queues)}"
            )
    canary = fleet.app.canary
    if canary and canary.queue not in fleet.consumed:
        variable = variables["celery_canary"]
        where = _deep_place(variable, ["queue"])
        hint = did_you_mean(canary.queue, fleet.consumed)
        yield f"{where}: celery_canary.queue: no worker consumes '{canary.queue}'{hint}"
    name = fleet.app.monitor.host
    if name and not fleet.monitor_host:
        variable = variables["celery_monitor"]
        where = _deep_place(variable, ["host"])
        hint = did_you_mean(name, (*inventory.groups, *hosts))
        yield (
            f"{where}: celery_monitor.host: no host or group of the application is called"
            f" '{name}'{hint}"
        )


def _nameless_master(inventory: Inventory, app: AppSettings, host: str) -> Iterator[str]:
    url = app.broker_url.get_secret_value()
    is_sentinel = url.lower().startswith("sentinel:")
    if is_sentinel and not app.broker_options.master_name:
        where = f"{inventory.hosts[host].variables['celery_broker_url'].place}: celery_broker_url"
        yield f"{where}: a Sentinel URL needs master_name in celery_broker_options"


def _lost_tunnel(
    inventory: Inventory, app: AppSettings, hosts: Sequence[FleetHost]
) -> Iterator[str]:
    name = app.broker_tunnel
    names = [host.name for host in hosts]
    if name and name not in names:
        variable = inventory.hosts[names[0]].variables["celery_broker_tunnel"]
        where = f"{variable.place}: celery_broker_tunnel"
        yield f"{where}: '{name}' is not a host of this fleet{did_you_mean(name, names)}"


def _with_own_probes(
    inventory: Inventory, host: Host, settings: HostSettings, problems: dict[str, None]
) -> HostSettings:
    """Return the settings with only the probes that run on this host."""
    own = []
    for n, probe in enumerate(settings.probes):
        try:
            if host.name in select_hosts(inventory, probe.hosts):
                own.append(probe)
        except UsageError as error:
            where = _deep_place(host.variables[f"{PREFIX}probes"], [n, "hosts"])
            problem = error.problem.removeprefix("--limit ")
            problems[f"{where}: {PREFIX}probes.{n}.hosts: {problem}"] = None
    return settings.model_copy(update={"probes": tuple(own)})


def _require_one_application(
    inventory: str, built: Sequence[tuple[AppSettings, FleetHost]]
) -> None:
    hosts = {app.app: host.name for app, host in reversed(built)}
    if len(hosts) > 1:
        (first, one), (second, other), *_ = reversed(hosts.items())
        problem = (
            f"{inventory}: {one} has {first}, and {other} has {second}: choose one with -A {first}"
        )
        raise SeveralApplications(problem, reversed(hosts))


def _disagreement(
    inventory: str, app: AppSettings, name: str, other: AppSettings, other_name: str
) -> Iterator[str]:
    differing = []
    for key in AppSettings.model_fields:
        if getattr(app, key) != getattr(other, key):
            differing.append(PREFIX + key)
    if differing and app.app == other.app:
        yield (
            f"{inventory}: {name} and {other_name} differ in {', '.join(differing)}, but an"
            " inventory describes one application"
        )


def _lost_moves(
    inventory: Inventory, host: str, rules: tuple[QueueRule, ...], consumed: set[str]
) -> Iterator[str]:
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
            own = {}
            for name, value in given.items():
                if KNOWN.get(name) is model:
                    own[name.removeprefix(PREFIX)] = value
            built.append(model.model_validate(own))
        except ValidationError as error:
            problems.update(dict.fromkeys(_located(host, given, error)))
    problems.update(dict.fromkeys(_directory_problems(inventory, host, given)))
    if len(built) < 2:
        return None
    app, own_settings = built
    return app, own_settings


def _rendered(host: Host, values: Values, problems: dict[str, None]) -> dict[str, Any]:
    """Return the values of this tool's variables, without those that are missing or secret."""
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
            what = (
                f"vault-encrypted text would be shown; move it to {' or '.join(_SECRETS)}, or keep"
                " it on the host"
            )
            problems[f"{host.variables[name].place}: {name}: {what}"] = None
            continue
        given[name] = value
    return given


def _directory_problems(
    inventory: Inventory, host: Host, given: Mapping[str, Any]
) -> Iterator[str]:
    for name in (STATE_DIRECTORY, TEMPLATES_DIRECTORY):
        if name not in given:
            continue
        value = given[name]
        where = f"{host.variables[name].place}: {name}"
        text = ""
        if isinstance(value, str):
            text = value
        try:
            absolute(text)
        except ValueError as error:
            yield f"{where}: {error}"
        else:
            if name == TEMPLATES_DIRECTORY and not Path(value).is_dir():
                yield f"{where}: {value} is not a folder"
            for folder in inventory.whole_folders:
                if is_read_with(folder, Path(value)):
                    yield f"{where}: it is in {folder}, whose files are all read as inventories"


def _located(host: Host, given: Mapping[str, Any], error: ValidationError) -> Iterator[str]:
    rendered = all(name in given for name in host.variables if name.startswith(PREFIX))
    for detail in error.errors(include_url=False, include_context=False):
        if not detail["loc"] and not rendered:
            # It concerns several variables, one of which is missing, which is already reported.
            continue
        name, *path = detail["loc"] or ("service_manager",)
        variable = host.variables.get(f"{PREFIX}{name}")
        where = ".".join(map(str, (f"{PREFIX}{name}", *path)))
        if variable is None:
            yield f"{host.place}: host '{host.name}' lacks the variable '{where}'"
            continue
        if f"{PREFIX}{name}" not in given:
            continue  # it could not be rendered, which is already reported
        text = plainly(detail)
        if detail["type"] == "extra_forbidden":
            text = f"unknown key{did_you_mean(str(path[-1]), _keys_of(str(name)))}"
        elif not path and _is_list_as_text(given[f"{PREFIX}{name}"]):
            text += "; got a string: in INI write True, False and None, in YAML remove the quotes"
        yield f"{_deep_place(variable, path)}: {where}: {text}"


def _is_list_as_text(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("[", "{"))


def _keys_of(name: str) -> list[str]:
    """Return the keys that a variable's maps may have."""
    if name not in _NESTED:
        return []
    return list(_NESTED[name].model_fields)


def _deep_place(variable: Variable, path: Sequence[str | int]) -> str:
    """Return the place of the innermost part of a value that the path reaches."""
    line = variable.line
    value = variable.value
    for key in path:
        try:
            line_of_key = value.lines[key]
            value = value[key]
            line = line_of_key
        except (AttributeError, LookupError, TypeError):  # the rest of the path came out of Jinja
            break
    return place(variable.path, line)

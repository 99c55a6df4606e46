"""Shows what the Redis server reports, and what each fact means for Celery.

If the broker's user may not read a fact (ACL, rename-command), the fact says so.

**Source:** Redis `INFO`, `CLIENT LIST` (flags: b blocked, S replica, O monitor, P pubsub; `cmd` the
last command), `CONFIG GET`; "Key eviction"; "Persistence".
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import redis

from runbooks.broker.queues.other_lists import other_lists
from runbooks.broker.server.connection import db_of
from runbooks.broker.server.store import Store
from runbooks.broker.views.memory import Kind, Usage, usage
from runbooks.core.views import NOT_ALLOWED, BrokerView, Fact
from runbooks.core.wording import counted, span, utc

Info = Mapping[str, Any]
Named = tuple[str, Fact]

_TESTED = "6.2, 7.0 and 8.2"
_OLDEST = (6, 2)
_HOUR_S = 3600
_FINDING_QUEUES_S = 0.3
_NAMES = "celery-runbooks"

_ORDER = (
    "version",
    "role",
    "uptime",
    "clients",
    "memory",
    "memory_by_kind",
    "snapshots",
    "append_only_file",
    "evictions",
    "keys_by_db",
)
_FROM_INFO = (
    "version",
    "role",
    "uptime",
    "memory",
    "snapshots",
    "append_only_file",
    "evictions",
    "keys_by_db",
)
_KIND_WORDS = {
    "queues": "waiting messages",
    "unacked": "messages that workers have fetched and not acknowledged",
    "results": "results of tasks and groups",
    "replies": "answers to remote control",
    "other": "other keys",
}
_CLIENT_WORDS = {
    "waiting": "{} waiting for messages in this db",
    "waiting_elsewhere": "{} waiting for messages in other dbs",
    "fetched": "took messages in this db before and {} not waiting now",
    "subscribed": "subscribed",
    "replicas": "replicas",
    "monitors": "MONITOR",
    "this_tool": "this tool",
    "others": "others",
}


def look_at_server(store: Store, queues: Collection[str]) -> BrokerView:
    """Return all facts; the memory by kind counts these queues, and others that are found."""
    now = time.time()
    with store.errors():
        info = _allowed(lambda: store.client.info())
        if info is None:
            facts = dict.fromkeys(_FROM_INFO, _not_allowed("INFO"))
        else:
            facts = dict(_of_info(info, store))
        facts["clients"] = _clients(store.client, info or {})
        facts["memory_by_kind"] = _memory_by_kind(store, queues, info or {})
    return BrokerView(now, {name: facts[name] for name in _ORDER})


def _allowed(ask: Callable[[], Any]) -> Any:
    """The answer; None if the user may not ask."""
    try:
        return ask()
    except redis.exceptions.NoPermissionError:
        return None


def _config(client: "redis.Redis") -> dict[str, str]:
    """Ask for one setting at a time: Redis before 7.0 accepts only one."""
    config: dict[str, str] = {}
    for name in ("save", "appendfsync", "stop-writes-on-bgsave-error"):
        found = client.config_get(name)
        config[name] = str(found.get(name, ""))
    return config


def _not_allowed(command: str) -> Fact:
    return Fact(None, "", unknown=NOT_ALLOWED.format(command))


def _of_info(info: Info, store: Store) -> Iterator[Named]:
    config = _allowed(lambda: _config(store.client))
    yield "version", _version(info)
    yield "role", _role(info)
    yield "uptime", _uptime(info)
    yield "memory", _memory(info)
    yield "snapshots", _snapshots(info, config)
    yield "append_only_file", _append_only_file(info, config)
    yield "evictions", _evictions(info)
    yield "keys_by_db", _keys_by_db(info, db_of(store.client))


def _version(info: Info) -> Fact:
    compatible = str(info.get("redis_version", "0"))
    name = "Redis"
    version = str(info.get("redis_version", ""))
    if info.get("server_name") == "valkey":
        name = "Valkey"
        version = str(info["valkey_version"])
    parts = tuple(map(int, compatible.split(".")[:2]))
    means = f"this tool is tested on Redis {_TESTED}"
    if parts < _OLDEST:
        means = f"older than {_OLDEST[0]}.{_OLDEST[1]}, the oldest that this tool is tested on"
    return Fact({"name": name, "version": version}, f"{name} {version}", means)


def _role(info: Info) -> Fact:
    """**Source:** Redis `INFO replication`: `slaveN:ip=…,port=…,state=online,offset=…,lag=…`."""
    shown = [_replica(one) for one in _sections(info, "slave")]
    value = {"role": str(info.get("role", "")), "replicas": shown}
    text = f"{value['role']}, {counted(len(shown), 'replica')}"
    if not shown:
        return Fact(value, text, "no other server has a copy of the queues")
    each = [f"{one['address']} {one['state']}, {one['lag_s']} s behind" for one in shown]
    text += f": {', '.join(each)}"
    means = "a failover loses the messages that have not reached the replica"
    if not any(one["state"] == "online" for one in shown):
        means = "no replica is in sync: a failover now would lose messages"
    return Fact(value, text, means)


def _sections(info: Info, prefix: str) -> Iterator[Mapping[str, Any]]:
    """The values of INFO that are mappings, under names with this prefix."""
    for name, one in info.items():
        if name.startswith(prefix) and isinstance(one, dict):
            yield one


def _replica(one: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "address": f"{one.get('ip')}:{one.get('port')}",
        "state": str(one.get("state")),
        "lag_s": one.get("lag"),
    }


def _uptime(info: Info) -> Fact:
    up_s = int(info.get("uptime_in_seconds", 0))
    since = utc(time.time() - up_s)
    text = f"{span(up_s)}, since {since}"
    means = "no restart has lost a message since then"
    if up_s < _HOUR_S:
        means = (
            "workers that were connected before lost their connections; messages that were not on"
            " disk are lost"
        )
    return Fact(up_s, text, means)


def _memory(info: Info) -> Fact:
    used = int(info.get("used_memory", 0))
    limit = int(info.get("maxmemory", 0))
    counted_bytes = used - int(info.get("mem_not_counted_for_evict", 0))
    policy = str(info.get("maxmemory_policy", ""))
    peak = int(info.get("used_memory_peak", 0))
    value = {"used_bytes": used, "maxmemory_bytes": limit, "policy": policy, "peak_bytes": peak}
    if not limit:
        text = f"{_size(used)} used, no maxmemory; peak {_size(peak)}"
        return Fact(
            value,
            text,
            "queues may grow until the machine has no memory left",
        )
    share = counted_bytes / limit
    text = f"{_size(used)} used, {share:.0%} of a maxmemory of {_size(limit)}; {policy};"
    text += f" peak {_size(peak)}"
    return Fact(value, text, _when_full(policy, is_full=counted_bytes > limit))


def _when_full(policy: str, *, is_full: bool) -> str:
    when = "it is full: " if is_full else "when it is full, "
    if policy == "noeviction":
        return f"{when}Redis refuses new messages"
    if policy.startswith("allkeys-"):
        return f"{when}Redis evicts keys, queues too: set maxmemory-policy noeviction"
    return (
        f"{when}Redis evicts keys with a time to live (results), and refuses writes when none is"
        " left"
    )


def _size(size_bytes: float) -> str:
    if size_bytes < 1024:
        return f"{size_bytes:,.0f} bytes"
    size_bytes /= 1024
    for unit in ("KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:,.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:,.1f} GiB"


def _snapshots(info: Info, config: Mapping[str, str] | None) -> Fact:
    """**Source:** Redis `INFO persistence`; `rdb_last_save_time` is the start before any save."""
    saved_at = int(info.get("rdb_last_save_time", 0))
    changes = int(info.get("rdb_changes_since_last_save", 0))
    status = str(info.get("rdb_last_bgsave_status", ""))
    when = None if config is None else str(config.get("save", ""))
    value = {
        "last_status": status,
        "last_save_at": saved_at,
        "changes_since": changes,
        "configured": when,
    }
    ago = span(time.time() - saved_at)
    which = "none is configured" if when == "" else f"last {status}"
    since = f"{counted(changes, 'change')} since the last one or the start, {ago} ago"
    return Fact(
        value,
        f"{which}; {since}",
        _of_snapshots(info, config, changes, ago),
    )


def _of_snapshots(
    info: Info,
    config: Mapping[str, str] | None,
    changes: int,
    ago: str,
) -> str:
    if info.get("rdb_last_bgsave_status") != "ok":
        return _of_failed_snapshot(config)
    if info.get("aof_enabled"):
        return "a restart reads the append-only file"
    if not changes:
        return "no message has come or gone since"
    if config is not None and not config.get("save"):
        return f"when Redis ends, every queue returns to its state of {ago} ago"
    return f"a crash now would return every queue to its state of {ago} ago"


def _of_failed_snapshot(config: Mapping[str, str] | None) -> str:
    if config is None:
        return (
            "the last one failed: Redis refuses new messages, unless stop-writes-on-bgsave-error is"
            " off"
        )
    if config.get("save") and config.get("stop-writes-on-bgsave-error") == "yes":
        return "the last one failed: Redis refuses new messages until one succeeds"
    return "the last one failed; Redis accepts writes nevertheless"


def _append_only_file(info: Info, config: Mapping[str, str] | None) -> Fact:
    enabled = bool(info.get("aof_enabled"))
    fsync = None if config is None else str(config.get("appendfsync", ""))
    written = str(info.get("aof_last_write_status", ""))
    rewritten = str(info.get("aof_last_bgrewrite_status", ""))
    value = {"enabled": enabled, "fsync": fsync, "last_write": written, "last_rewrite": rewritten}
    if not enabled:
        return Fact(
            value,
            "off",
            "a crash loses the messages that are not in the last snapshot",
        )
    text = f"on, fsync {fsync or 'unknown'}, last write {written}, last rewrite {rewritten}"
    return Fact(value, text, _of_append_only_file(written, fsync))


def _of_append_only_file(written: str, fsync: str | None) -> str:
    if written != "ok":
        return "Redis cannot write it, and refuses new messages until it can"
    if fsync == "always":
        return "a crash loses no message that Redis has confirmed"
    if fsync == "everysec":
        return "a crash of the machine loses up to about two seconds of messages"
    if fsync == "no":
        return "a crash of the machine loses the messages that its kernel had not written yet"
    return f"how much a crash loses depends on appendfsync: {NOT_ALLOWED.format('CONFIG GET')}"


def _evictions(info: Info) -> Fact:
    evicted = int(info.get("evicted_keys", 0))
    policy = str(info.get("maxmemory_policy", ""))
    text = f"{counted(evicted, 'key')} since the start"
    if not evicted:
        means = "Redis has evicted no queue to free memory"
    elif policy.startswith("allkeys-"):
        means = f"queues may be among them: {policy} evicts any key"
    elif policy.startswith("volatile-"):
        means = f"{policy} evicts only keys with a time to live: results have one, queues do not"
    else:
        means = f"under an earlier policy: {policy} evicts nothing"
    return Fact(evicted, text, means)


def _keys_by_db(info: Info, own: int) -> Fact:
    """**Source:** Redis `INFO keyspace`: `dbN:keys=…,expires=…,avg_ttl=…` of each db with keys."""
    dbs: dict[int, dict[str, int]] = {}
    for name, of in info.items():
        number = name[2:]
        if name.startswith("db") and number.isdigit() and isinstance(of, dict):
            dbs[int(number)] = {"keys": int(of["keys"]), "expires": int(of["expires"])}
    value: dict[str, dict[str, int]] = {}
    each: list[str] = []
    for db, its in sorted(dbs.items()):
        value[str(db)] = its
        each.append(f"db {db}: {its['keys']:,}, {its['expires']:,} with a time to live")
    text = "; ".join(each) or "no keys"
    here = f"this application's db is {own}"
    if not dbs.keys() - {own}:
        return Fact(value, text, f"{here}, and the others are empty")
    means = f"{here}; it shares this server's memory and CPU with the others"
    return Fact(value, text, means)


def _clients(client: "redis.Redis", info: Info) -> Fact:
    most = int(info.get("maxclients", 0))
    found = _allowed(client.client_list)
    if found is None:
        return _not_allowed("CLIENT LIST")
    own = str(db_of(client))
    kinds = Counter(_client_kind(one, own) for one in found)
    by_kind = {name: kinds[name] for name in _CLIENT_WORDS}
    value = {"connected": len(found), "maxclients": most or None, "kinds": by_kind}
    each: list[str] = []
    for name, words in _CLIENT_WORDS.items():
        if kinds[name]:
            verb = "is" if kinds[name] == 1 else "are"
            each.append(f"{kinds[name]:,} {words.format(verb)}")
    room = f" of {most:,}" if most else ""
    text = f"{len(found):,}{room}: {', '.join(each)}"
    refused = int(info.get("rejected_connections", 0))
    return Fact(value, text, _of_clients(kinds, len(found), most, refused))


def _client_kind(one: Mapping[str, str], db: str) -> str:
    flags = one.get("flags", "")
    if one.get("name") == _NAMES:
        return "this_tool"
    if "S" in flags:
        return "replicas"
    if "O" in flags:
        return "monitors"
    if "P" in flags:
        return "subscribed"
    if one.get("cmd") == "brpop":
        if one.get("db") != db:
            return "waiting_elsewhere"
        return "waiting" if "b" in flags else "fetched"
    return "others"


def _of_clients(
    kinds: Mapping[str, int],
    connected: int,
    most: int,
    refused: int,
) -> str:
    if most and connected >= most * 0.9:
        return f"Redis refuses workers and producers when {most:,} clients are connected"
    if refused:
        were = counted(refused, "connection was", "connections were")
        return f"{were} refused since the start: there were too many clients"
    if kinds["waiting"]:
        return "waiting workers take new messages of their queues at once"
    if kinds["fetched"]:
        return "no worker waits for messages in this db: the connected workers are busy or hang"
    if kinds["waiting_elsewhere"]:
        return (
            "no worker waits for messages in this db, but some wait in other dbs: do the workers"
            " use this broker URL?"
        )
    return "no worker waits for messages"


def _memory_by_kind(store: Store, queues: Collection[str], info: Info) -> Fact:
    try:
        found = _usage(store, queues)
    except redis.exceptions.NoPermissionError as error:
        return _not_allowed(_denied(str(error)))
    in_db = sum(of.size_bytes for of in found.kinds.values())
    rest: int | None = None
    if "used_memory" in info:
        rest = max(0, int(info["used_memory"]) - in_db)
    kinds = {name: {"keys": of.keys, "bytes": of.size_bytes} for name, of in found.kinds.items()}
    value = {
        "kinds": kinds,
        "keys_looked_at": found.looked_at,
        "keys": found.keys,
        "exact": found.exact,
        "elsewhere_bytes": rest,
    }
    text = f"{_how_sure(found)}: {_largest_first(found.kinds) or 'nothing'}"
    if rest is not None:
        text += f"; other dbs, connections and Redis itself: {_size(rest)}"
    means = _of_kinds(found.kinds)
    if rest is not None and rest > in_db:
        means = "most of the server's memory is not in this db"
    return Fact(value, text, means)


def _usage(store: Store, queues: Collection[str]) -> Usage:
    lists: set[bytes] = set()
    for queue in queues:
        lists.update(key.encode() for key in store.keys.queue(queue))
    unacked = [store.keys.unacked.encode(), store.keys.unacked_index.encode()]
    others = other_lists(store, lists, time.monotonic() + _FINDING_QUEUES_S).found
    for key, (_, holds_messages) in others.items():
        if holds_messages:
            lists.add(key)
    return usage(store.client, lists, unacked)


def _largest_first(kinds: Mapping[str, Kind]) -> str:
    each: list[str] = []
    for name, kind in sorted(kinds.items(), key=lambda one: -one[1].size_bytes):
        if kind.keys:
            each.append(
                f"{_KIND_WORDS[name]} {_size(kind.size_bytes)} in {counted(kind.keys, 'key')}"
            )
    return "; ".join(each)


def _denied(problem: str) -> str:
    """The command that Redis refused, if its answer names one."""
    words = re.findall(r"(?:run the|unknown command) '(\w+)", problem)
    if not words:
        return "SCAN or MEMORY USAGE"
    command = words[-1].upper()
    if command == "MEMORY":
        return "MEMORY USAGE"
    return str(command)


def _how_sure(found: Usage) -> str:
    if found.exact:
        return f"this db, all {counted(found.keys, 'key')} measured"
    sized = sum(kind.sized for kind in found.kinds.values())
    checked = f"{found.looked_at:,} of {counted(found.keys, 'key')} checked"
    return f"this db, estimated: {checked}, {sized:,} measured"


def _of_kinds(kinds: Mapping[str, Kind]) -> str:
    largest = max(kinds, key=lambda name: kinds[name].size_bytes)
    results = kinds["results"]
    if not kinds[largest].size_bytes:
        return "this db is empty"
    if largest == "queues":
        return "mostly waiting messages: the memory is freed as workers process them"
    if largest == "unacked":
        return "mostly messages that workers hold: the memory is freed as they acknowledge them"
    if largest == "results" and results.keep:
        return "mostly results, some of which never expire: see result_expires"
    if largest == "results":
        return "mostly results: they expire (result_expires)"
    if largest == "replies":
        return "mostly answers to remote control that were never fetched: no task needs them"
    return "mostly keys that are not a queue or a result under Celery's usual names"

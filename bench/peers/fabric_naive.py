"""The job in naive Fabric: a group, `put` and `sudo` call by call. `python fabric_naive.py
restart|start`.
"""

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import paramiko
from fabric import Config, Connection, ThreadingGroup
from job import STATE, UNITS, hosts, render

action = sys.argv[1]
config = Config(
    overrides={"load_ssh_configs": False, "run": {"hide": True}, "sudo": {"hide": True}}
)
login = {"key_filename": str(STATE / "id_ed25519"), "allow_agent": False, "look_for_keys": False}
names = {address: name for name, address in hosts().items()}
group = ThreadingGroup.from_connections(
    [Connection(address, user="deploy", config=config, connect_kwargs=login) for address in names]
)
for connection in group:
    connection.client.load_host_keys(str(STATE / "known_hosts"))
    connection.client.set_missing_host_key_policy(paramiko.RejectPolicy())


def place(connection: Connection) -> bool:
    changed = False
    for path, text in render(names[connection.host]).items():
        new = f"/tmp/{PurePosixPath(path).name}"
        connection.put(io.StringIO(text), new)
        if connection.sudo(f"cmp -s {new} {path}", warn=True).failed:
            connection.sudo(f"install -m 644 {new} {path}")
            changed = True
    return changed


with ThreadPoolExecutor(len(group)) as pool:
    changed = [
        connection
        for connection, is_changed in zip(group, pool.map(place, group), strict=True)
        if is_changed
    ]
if changed:
    ThreadingGroup.from_connections(changed).sudo("systemctl daemon-reload")
for unit in UNITS:
    group.sudo(f"systemctl enable {unit}")
    group.sudo(f"systemctl {action} {unit}")
for unit in UNITS:
    group.sudo(f"systemctl is-active {unit}")
group.sudo(f"journalctl --no-pager -n 20 -u {' -u '.join(UNITS)}")
group.close()

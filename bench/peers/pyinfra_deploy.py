"""The job for pyinfra: `pyinfra pyinfra_inventory.py pyinfra_deploy.py -y --data
action=restart|start`.
"""

from job import HERE, UNITS, WORKERS
from pyinfra import host
from pyinfra.operations import files, server, systemd

SYSTEM = "/etc/systemd/system"
placed = [
    files.template(
        name=f"Place {unit}", src=str(HERE / "worker.service.j2"), dest=f"{SYSTEM}/{unit}", mode="644",
        worker=worker, node=f"{worker}@{host.data.host_name}",
    )
    for worker, unit in zip(WORKERS, UNITS, strict=True)
]  # fmt: skip
placed.append(
    files.template(
        name="Place celery.target",
        src=str(HERE / "celery.target.j2"),
        dest=f"{SYSTEM}/celery.target",
        mode="644",
    )
)
systemd.daemon_reload(
    name="Let systemd read them", _if=lambda: any(one.did_change() for one in placed)
)
for unit in UNITS:
    systemd.service(
        name=f"Enable and start {unit}", service=unit, enabled=True, running=True,
        restarted=host.data.action == "restart",
    )  # fmt: skip
server.shell(name="Both are active", commands=[f"systemctl is-active {' '.join(UNITS)}"])
server.shell(
    name="Their last lines", commands=[f"journalctl --no-pager -n 20 -u {' -u '.join(UNITS)}"]
)

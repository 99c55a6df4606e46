"""pyinfra's inventory of the hosts."""

from job import STATE
from job import hosts as addresses

hosts = (
    [(name, {"ssh_hostname": address, "host_name": name}) for name, address in addresses().items()],
    {
        "ssh_user": "deploy",
        "ssh_key": str(STATE / "id_ed25519"),
        "ssh_known_hosts_file": str(STATE / "known_hosts"),
        "ssh_strict_host_key_checking": "yes",
        "_sudo": True,
    },
)

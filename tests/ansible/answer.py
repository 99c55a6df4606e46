"""Asks Ansible's own library about many inventories in one process; run as a script, for Ansible is
slow to start.

Each line of stdin is a JSON list of an inventory's sources, `--limit` patterns and templates; each
line of stdout is what Ansible says to it: `error`, or `hosts` and `groups` (in order), `variables`
as `ansible-inventory --list` prints them, `limits` (hosts, or an error's text), `values` (the
templates' on the first host, or an error's text), `warnings`.
"""

import json
import sys
from typing import Any

from ansible import constants
from ansible._internal._json._profiles import _inventory_legacy
from ansible.cli.inventory import InventoryCLI
from ansible.errors import AnsibleError
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template
from ansible.utils.display import Display
from ansible.vars.manager import VariableManager

WARNINGS: list[str] = []


def answer(sources: list[str], limits: list[str], templates: list[str]) -> dict[str, Any]:
    WARNINGS.clear()
    loader = DataLoader()
    try:
        inventory = InventoryManager(loader, sources=sources)
        everything = inventory.get_hosts("all")
        manager = VariableManager(loader, inventory=inventory)
        variables = {
            host.name: InventoryCLI._remove_internal(
                manager.get_vars(host=host, include_hostvars=False, stage="all")
            )
            for host in everything
        }
        plain = json.loads(json.dumps(variables, cls=_inventory_legacy.Encoder))
    except (AnsibleError, TypeError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}", "warnings": list(WARNINGS)}
    said = list(WARNINGS)
    return {
        "hosts": [host.name for host in everything],
        "groups": {
            name: [host.name for host in group.get_hosts()]
            for name, group in inventory.groups.items()
        },
        "unsettled": [name for name, group in inventory.groups.items() if not settled(group)],
        "variables": plain,
        "limits": {limit: limited(inventory, limit) for limit in limits},
        "values": [rendered(loader, manager, everything[0], template) for template in templates],
        "warnings": said,
    }


def settled(group: Any) -> bool:
    seen, level = {group}, [group]
    while level:
        parents = [one for one in level if not set(one.child_groups) <= seen]
        if len(parents) > 1:
            return False
        seen.update(
            level := [child for one in parents for child in one.child_groups if child not in seen]
        )
    return True


def limited(inventory: InventoryManager, limit: str) -> Any:
    WARNINGS.clear()
    try:
        inventory.subset(limit)
        hosts = [host.name for host in inventory.get_hosts("all")]
    except AnsibleError as error:
        return str(error)
    finally:
        inventory.subset(None)
        inventory.clear_caches()
    return str(WARNINGS) if WARNINGS else hosts


def rendered(loader: DataLoader, manager: VariableManager, host: Any, template: str) -> Any:
    templar = Templar(loader, variables=manager.get_vars(host=host, stage="all"))
    try:
        value = templar.template(trust_as_template(template))
        return {"value": json.loads(json.dumps(value, cls=_inventory_legacy.Encoder))}
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    init_plugin_loader()
    display: Any = Display()
    display.warning = lambda msg, *args, **kwargs: WARNINGS.append(str(msg))
    display.error_as_warning = lambda msg, exception, **kwargs: WARNINGS.append(
        f"{msg} {exception}"
    )
    display.deprecated = lambda *args, **kwargs: None
    constants.INVENTORY_ANY_UNPARSED_IS_FAILED = True
    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

"""A hundred secrets through every way in, in every form: none comes out, nor stands in a record or
a process list.
"""

import base64
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.sandbox.conftest import Done, World, make_world
from tests.unit.monitoring.test_notify import http_receiver

BODIES = (
    "plain-Tr0ub4dor",
    "it's",
    'say "x"',
    "back\\slash",
    "a b",
    "a/b#c",
    "100%&+=",
    "$HOME`x`",
    "gr\xfc\xdfe",
    "q?@:;,",
)
NAMES = (
    "DB_PASSWORD", "SMTP_PASS", "LDAP_PWD", "CACHE_PW", "SSH_PASSPHRASE", "PROXY_AUTH", "CHAT_WEBHOOK",
    "GLPI_EXTRA_TOKEN", "APP_SECRET", "SIGNING_KEY", "SENTRY_DSN", "API_KEY", "AWS_CREDENTIALS", "SESSION_COOKIE",
    "LICENCE_NR",
)  # fmt: skip
SPILL = "inventory.tasks.spill"
SPILLS = '''
import base64, json, os, shlex
from urllib.parse import quote, quote_plus


def said(found):
    """What a careless program prints of its secrets."""
    for name, value in found.items():
        raw = value.encode()
        yield f"{name}={value}"
        yield f"the value is {value!r}, in JSON {json.dumps(value)}, and {json.dumps(repr({'x': value}))}"
        yield f"{json.dumps(value, ensure_ascii=False)} {shlex.quote(value)}"
        yield f"{quote(value, safe='')} {quote_plus(value)}"
        lower = "".join(f"%{b:02x}" if not chr(b).isalnum() or b > 127 else chr(b) for b in raw)
        yield f"postgres://me:{lower}@db/1 {raw!r} {ascii(value)}"
        yield " ".join(base64.b64encode(b"-" * n + raw + b"--").decode() for n in range(3))


def spilled(**secrets):
    return [*said({k: v for k, v in {**os.environ, **secrets}.items() if "Kq" in v})]
'''
TASK = """

@shared_task(bind=True, max_retries=0)
def spill(self: Task, how: str = "return", **secrets: str) -> dict[str, Any]:
    import logging

    from inventory.spills import spilled

    for line in spilled(**secrets):
        logging.getLogger("celery.task").warning("%s", line)
    if how == "raise":
        raise RuntimeError("\\n".join(spilled(**secrets)))
    return {"said": spilled(**secrets), **secrets}
"""


@dataclass
class Planted:
    """A sandbox full of secrets, each of which begins with `Kq` and three digits, and all that came
    out of it.
    """

    world: World
    secrets: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def cron_file(self) -> Path:
        (path,) = (self.world.root / "root/etc/cron.d").iterdir()
        return path

    def secret(self) -> str:
        n = len(self.secrets)
        value = f"Kq{n:03}{BODIES[n % len(BODIES)]}Zx{n:03}w"
        self.secrets[f"Kq{n:03}"] = value
        return value

    def inv(self, *arguments: str) -> Done:
        done = subprocess.run(
            self.world.command(*arguments), cwd=self.world.path, env=self.world.environment | self.variables,
            input="", capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        self.seen.append((f"inv {' '.join(arguments)}", done.stdout + done.stderr))
        return Done(done.returncode, done.stdout, done.stderr)

    def both(self, *arguments: str) -> None:
        """As text and as JSON, which has to be valid; neither with a traceback of the tool's own."""
        text = self.inv(*arguments)
        document = self.inv(*arguments, "--json")
        assert document.json["schema"] == 1
        assert "runbooks/cli" not in text.err + document.err, text.err

    def leaks(self, text: str) -> list[str]:
        """The secrets of which more than a letter or two is to be read in a text, as they are or in
        base64.
        """
        found = set(re.findall(r"Kq\d{3}", text))
        for name, value in self.secrets.items():
            coded = (base64.b64encode(b"-" * n + value.encode()).decode()[4:-4] for n in range(3))
            if any(one in text or one.replace("+", "-").replace("/", "_") in text for one in coded):
                found.add(name)
        return sorted(found)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    world = make_world(tmp_path_factory.mktemp("planted"))
    patient = world.path / "lab/patient/inventory"
    (patient / "spills.py").write_text(SPILLS)
    (patient / "tasks.py").write_text((patient / "tasks.py").read_text() + TASK)
    up = world.inv("sandbox", "--healthy")
    assert up.code == 0, up.err
    with http_receiver() as (port, got):
        here = Planted(world)
        plant(here, port)
        yield here
        assert got, "something was crossed, and reported"
        assert here.leaks(json.dumps(got, ensure_ascii=False)) == []
    down = world.inv("sandbox", "--down")
    assert down.code == 0, down.err


def plant(here: Planted, port: int) -> None:
    world = here.world
    with world.env_file.open("a") as file:
        for _ in range(3):
            for name in NAMES:
                number = len(here.secrets)
                file.write(f"{name}_{number}={shlex.quote(here.secret())}\n")
        for name in NAMES:
            file.write(f"{name}={shlex.quote(here.secret())}\n")
        file.write(f"GREETING={shlex.quote(here.secrets['Kq000'])}\n")
        file.write(f"CACHE_URL='redis://me:{quote(here.secret(), safe='')}@cache:6379/1'\n")
    with here.cron_file.open("a") as file:
        file.write(f"LDAP_PWD={here.secret()}\n")
    here.cron_file.chmod(0o640)
    broker = here.secret()
    with world.broker() as client:
        client.execute_command(
            "ACL", "SETUSER", "operator", "on", f">{broker}", "~*", "&*", "+@all"
        )
    url = (
        (world.root / "broker.url")
        .read_text()
        .replace("redis://", f"redis://operator:{quote(broker, safe='')}@")
    )
    (world.path / "broker.secret").write_text(url)
    vault = world.path / "vault.password"
    vault.write_text("x")
    vaulted = subprocess.run(
        [Path(sys.executable).parent / "ansible-vault", "encrypt_string", "--vault-password-file", vault,
         here.secret()],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    here.variables = {
        "OPERATOR_TOKEN": here.secret(), "ANSIBLE_VAULT_PASSWORD_FILE": str(vault), "TMPDIR": str(world.path / "tmp"),
    }  # fmt: skip
    (world.path / "tmp").mkdir()
    own: dict[str, Any] = {f"shop_{name.lower()}": here.secret() for name in NAMES}
    own |= {
        "shop": {
            "accounts": [{"user": "me", "password": here.secret()}, {"api_token": here.secret()}]
        }
    }
    shortcut = {
        "how": "return",
        "password": here.secret(),
        "api_token": "{{ lookup('env', 'OPERATOR_TOKEN') }}",
    }
    templates = world.path / "own/cron"
    templates.mkdir(parents=True)
    shipped = (world.path / "templates/cron/celery.j2").read_text()
    (templates / "celery.j2").write_text(
        shipped.replace("SHELL=", f"SMTP_PASS={here.secret()}\nSHELL=")
    )
    python = f"{sys.executable} -c 'import spills; print(*spills.spilled(), sep=chr(10))'"
    probe = f"set -a; . {world.env_file}; cd inventory; {python}; false"
    notify = f"json://me:{quote(here.secret(), safe='')}@127.0.0.1:{port}/?apikey={quote(here.secret(), safe='')}"
    variables = {
        **own,
        "celery_secret_names": ["licence"],
        "celery_notify": [notify],
        "runbooks_templates_directory": str(world.path / "own"),
        "ansible_become_password": "VAULTED",
        "celery_shortcuts": {"spill": {"task": SPILL, "kwargs": shortcut, "queue": "daemon", "timeout": "60s"}},
        "celery_probes": [{"name": "spilling", "command": probe}],
    }  # fmt: skip
    text = (world.path / "inventory.yaml").read_text()
    text = (
        text[: text.index("        celery_probes:")]
        + text[text.index("        celery_probes:") :].partition("\n\n")[2]
    )
    text = re.sub(r"        celery_shortcuts:\n(?: {10}.*\n)+", "", text)
    text = text.replace("        celery_env:\n", "        celery_env:\n          GREETING: hello\n")
    lookup = "lookup('file', inventory_dir ~ '/.sandbox/broker.url', errors='ignore')"
    assert lookup in text
    text = text.replace(lookup, "lookup('file', inventory_dir ~ '/broker.secret')")
    text = text.replace(
        "            high_priority: {depth: 500}\n", "            daemon: {depth: 0}\n"
    )
    text = text.replace(
        "./workers_status.sh {worker}",
        f"./workers_status.sh {{worker}}; code=$?; cat {world.env_file} >&2; exit $code",
    )
    added = "".join(f"        {name}: {json.dumps(value)}\n" for name, value in variables.items())
    encrypted = vaulted.partition("!vault")[2].strip()
    added = added.replace('"VAULTED"', "!vault " + textwrap.indent(encrypted, " " * 10).strip())
    (world.path / "inventory.yaml").write_text(text.rstrip("\n") + "\n\n" + added)


def poll(here: Planted, **kwargs: str) -> None:
    """A message of a task with keyword arguments, as Celery writes it."""
    call = f"app.send_task('inventory.tasks.spill', kwargs={kwargs!r}, queue='parked', retries=5)"
    url = (here.world.root / "broker.url").read_text()
    subprocess.run(
        [sys.executable, "-c", f"import celery; app = celery.Celery(broker={url!r}); {call}"],
        check=True,
    )


@contextmanager
def watched(here: Planted) -> Iterator[None]:
    """What stands in the list of processes meanwhile, of those that have started since."""
    over, before = threading.Event(), {*os.listdir("/proc")}

    def look() -> None:
        while not over.wait(0.01):
            for process in filter(str.isdigit, {*os.listdir("/proc")} - before):
                path = Path("/proc", process, "cmdline")
                with suppress(OSError):
                    text = path.read_bytes().decode(errors="replace")
                    if "Kq" in text:
                        here.seen.append((f"{path} {text[:200]}", text))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_none_of_a_hundred_secrets_comes_out_whatever_way_it_came_in(
    planted: Planted, tmp_path: Path
) -> None:
    poll(
        planted,
        password=planted.secret(),
        user_token=planted.secret(),
        dsn=f"redis://:{planted.secret()}@h/0",
    )
    for n in range(5):
        poll(
            planted,
            pw=planted.secret(),
            passwd=planted.secret(),
            note=f"AUTH={planted.secret()} n={n}",
        )
    assert len(planted.secrets) >= 100
    textfile = tmp_path / "metrics.prom"
    installed = planted.cron_file.read_bytes()
    with watched(planted):
        planted.both("hosts")
        planted.both("render")
        planted.both("restart-workers", "--yes")
        planted.both("run-task", "spill")
        for verb in (
            ("diagnose",),
            ("verify",),
            ("remediate", "--dry-run"),
            ("install-cron", "--yes"),
            ("tail-logs", "--since", "1h"),
        ):
            planted.both(*verb)
        planted.both("tail-logs", "--grep", "spill", "--since", "1h")
        planted.both("monitor", "--textfile", str(textfile))
        planted.both("monitor", "--history")
        planted.both("queues", "parked")
        planted.both("messages", "parked", "--full")
        planted.both("clean-queues", "--dry-run", "--queue", "parked", "--task", "*")
        planted.both("clean-queues", "--yes", "--queue", "parked", "--task", "*")
        planted.both("runs")
        runs = planted.inv("runs", "--json").json["runs"]
        record = next(one["run"] for one in reversed(runs) if one["verb"] == "clean-queues")
        files = next(one["run"] for one in runs if one["verb"] == "install-cron")
        for verb in (
            ("show", record),
            ("archive.show", record),
            ("archive.list",),
            ("undo", record, "--dry-run"),
        ):
            planted.both(*verb)
        for verb in (
            ("show", files),
            ("undo", files, "--dry-run"),
            ("archive.verify", files),
            ("undo", files, "--yes"),
        ):
            planted.both(*verb)
        pages = [planted.world.path / "tmp" / name for name in ("run.html", "run.md")]
        planted.both(
            "report", record, "--html", str(pages[0]), "--markdown", str(pages[1]), "--logs"
        )
        planted.both("undo", record, "--yes")
    assert (planted.cron_file.read_bytes(), planted.cron_file.stat().st_mode & 0o777) == (
        installed,
        0o640,
    )
    typed = {
        "password": planted.secret(),
        "token": planted.secret(),
    }  # which is unknown once this command has ended
    planted.both(
        "run-task", SPILL, "--queue", "daemon", "--kwargs", json.dumps({"how": "raise", **typed})
    )
    planted.both("show", "last")
    state = planted.world.root / "state"
    put_back = {
        path for name in ("*.messages.jsonl", "contents.jsonl") for path in state.rglob(name)
    }
    for path in {textfile, *state.rglob("*"), *planted.world.path.glob("tmp/*")} - put_back:
        if path.is_file():
            planted.seen.append((str(path), path.read_bytes().decode(errors="replace")))
    assert base64.b64encode(installed) in (state / "runs" / files / "contents.jsonl").read_bytes()
    leaks = {what[:300]: planted.leaks(text) for what, text in planted.seen if planted.leaks(text)}
    assert leaks == {}
    outputs = "".join(text for what, text in planted.seen if what.startswith("inv "))
    assert outputs.count("********") > 500, "they did come up"
    assert SPILL in outputs

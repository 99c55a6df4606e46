"""What an operator can type or write is documented."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import indent
from types import ModuleType

import pytest
import yaml
from invoke.collection import Collection

from lab import man_page, reference_page
from runbooks.cli import verbs
from runbooks.core.envfile.edit import read
from runbooks.core.errors import EXIT_CODES, ExitCode, InventoryError
from runbooks.core.settings import AppSettings, HostSettings
from runbooks.inventory.build import build_fleet
from runbooks.inventory.lookups import FILTERS
from runbooks.inventory.read import load_inventory
from tests.sentences import NO_PROMISE, PAGES, checks_of, sentences, unchecked
from tests.transcripts import require_shown

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.parametrize("verb", sorted(Collection.from_module(verbs).task_names))
def test_every_verb_is_in_the_readme(verb: str) -> None:
    assert f"`{verb}" in (CHECKOUT / "README.md").read_text()


def test_the_flags_that_the_readme_names_are_of_their_verbs() -> None:
    namespace = Collection.from_module(verbs)
    names, verb, count = namespace.task_names, "", 0
    for row in re.findall(r"^\| (\[?`.*?) \| ", (CHECKOUT / "README.md").read_text(), re.M):
        for span in re.findall(r"`([^`]+)`", row):
            for word in re.findall(r"--[a-z-]+|[a-z.-]+", span):
                if word in (*names, "sandbox", "fleet") and not word.startswith("-"):
                    verb = word
                elif word.startswith("--") and verb in names:
                    flags = {name for one in namespace[verb].get_arguments() for name in one.names}
                    assert word[2:] in flags, f"{verb} {word}"
                    count += 1
    assert count > 30


@pytest.mark.parametrize(
    "variable", sorted({*AppSettings.model_fields, *HostSettings.model_fields})
)
def test_every_variable_is_in_the_inventory_page(variable: str) -> None:
    assert f"`celery_{variable}`" in (CHECKOUT / "docs/inventory.md").read_text()


def test_the_least_inventory_of_the_inventory_page_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".config/shop").mkdir(parents=True)
    (tmp_path / ".config/shop/redis").write_text("hunter2\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    example = (CHECKOUT / "docs/inventory.md").read_text().split("```yaml\n")[1].partition("```")[0]
    (tmp_path / "inventory.yaml").write_text(example)
    inventory = load_inventory(tmp_path / "inventory.yaml")
    fleet = build_fleet(inventory, tuple(inventory.hosts))
    assert [host.name for host in fleet.hosts] == [
        f"{name}.example.com" for name in ("web01", "web02", "web03", "cron1")
    ]
    assert fleet.app.broker_url.get_secret_value() == "redis://:hunter2@redis.example.com:6379/0"


def examples(page: str) -> list[str]:
    return [
        part.partition("```")[0]
        for part in (CHECKOUT / "docs" / page).read_text().split("```yaml\n")[1:]
    ]


def test_the_examples_that_an_inventory_error_points_to_are_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_BROKER_URL", "redis://redis1:6379/0")
    whole, host = (
        one for one in examples("inventory.md") if one.startswith(("vars:", "web1.example.com:"))
    )
    lines = ["all:", indent(whole, "  "), "  hosts:", indent(host, "    ")]
    (tmp_path / "inventory.yaml").write_text("\n".join(lines))
    inventory = load_inventory(tmp_path / "inventory.yaml")
    assert [host.name for host in build_fleet(inventory, tuple(inventory.hosts)).hosts] == [
        "web1.example.com"
    ]
    headings = re.findall(r"^## (.*)$", (CHECKOUT / "docs/inventory.md").read_text(), re.MULTILINE)
    slugs = {re.sub(r"[^a-z -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    (tmp_path / "inventory.yaml").write_text(
        "\n".join(lines).replace("shop.tasks.send_mail]", "5]").replace("2m", "soon")
    )
    with pytest.raises(InventoryError) as error:
        build_fleet(load_inventory(tmp_path / "inventory.yaml"), ("web1.example.com",))
    linked = re.findall(r"docs/inventory\.md#(\S+)", error.value.advice or "")
    assert (len(linked), slugs.issuperset(linked)) == (2, True), error.value.advice


def test_the_inventory_of_the_kubernetes_page_works_and_its_job_runs_the_monitor_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example, manifest, _ = examples("kubernetes.md")
    monkeypatch.setenv("BROKER_URL", "redis://:hunter2@redis:6379/0")
    (tmp_path / "inventory.yaml").write_text(example)
    inventory = load_inventory(tmp_path / "inventory.yaml")
    fleet = build_fleet(inventory, tuple(inventory.hosts))
    assert (fleet.hosts, fleet.app.restart_hint) == (
        (),
        "kubectl -n shop rollout restart deployment/worker",
    )
    claim, job = yaml.safe_load_all(manifest)
    assert [(one["apiVersion"], one["kind"]) for one in (claim, job)] == [
        ("v1", "PersistentVolumeClaim"),
        ("batch/v1", "CronJob"),
    ]
    spec = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in spec["volumes"]}
    assert fleet.state_directory == Path(mounted["state"])
    program, verb, *arguments = container["command"]
    assert (program, verb) in {
        ("celery-runbooks", name) for name in Collection.from_module(verbs).task_names
    }
    assert arguments == ["--inventory", f"{mounted['inventory']}/inventory.yaml"]
    assert job["spec"]["schedule"] == "*/10 * * * *"
    assert job["spec"]["jobTemplate"]["spec"]["backoffLimit"] == 0
    page = " ".join((CHECKOUT / "docs/kubernetes.md").read_text().split())
    made = dict(re.findall(r"kubectl create (configmap|secret generic) (\S+)", page))
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert made == {
        "configmap": volumes["inventory"]["configMap"]["name"],
        "secret generic": container["envFrom"][0]["secretRef"]["name"],
    }
    assert volumes["state"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


@pytest.mark.parametrize("name", [*FILTERS, "lookup('file'", "lookup('env'", "lookup('pipe'"])
def test_every_filter_and_lookup_is_in_the_inventory_page(name: str) -> None:
    assert f"`{name}" in (CHECKOUT / "docs/inventory.md").read_text()


@pytest.mark.parametrize("code", list(ExitCode))
def test_every_exit_code_is_in_the_readme(code: ExitCode) -> None:
    listed = " ".join((CHECKOUT / "README.md").read_text().partition("Exit codes:")[2].split())
    assert f"{int(code)} {EXIT_CODES[code]}" in listed


@pytest.mark.parametrize(
    "made", [reference_page, man_page], ids=["reference.md", "celery-runbooks.1"]
)
def test_the_pages_made_from_the_code_are_as_inv_docs_makes_them(
    made: ModuleType, request: pytest.FixtureRequest
) -> None:
    assert (CHECKOUT / "docs" / request.node.callspec.id).read_text() == made.page()


def test_every_test_that_a_promise_names_exists() -> None:
    rows = re.findall(
        r"^\| .+ \| `(tests/.+\.py)::(\w+)` \|$",
        (CHECKOUT / "docs/reliability.md").read_text(),
        re.M,
    )
    assert len(rows) > 20
    for path, name in rows:
        assert f"def {name}(" in (CHECKOUT / path).read_text(), f"{path}::{name}"


@pytest.mark.parametrize("page", PAGES)
def test_every_sentence_of_a_page_has_a_check(page: str) -> None:
    assert unchecked(page) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_check_of_a_page_is_of_one_sentence(page: str) -> None:
    known = set(sentences(page))
    found = [(check, {one.text for one in known if check.is_of(one)}) for check in checks_of(page)]
    assert [(check, texts) for check, texts in found if len(texts) != 1] == []


def test_a_sentence_without_a_check_is_listed(tmp_path: Path) -> None:
    (tmp_path / "tests/sentences").mkdir(parents=True)
    shutil.copy(CHECKOUT / "tests/sentences.py", tmp_path / "tests")
    (tmp_path / "tests/__init__.py").touch()
    (tmp_path / "page.md").write_text("# Page\n\nOne is checked. Another *is* not.\n")
    (tmp_path / "tests/sentences/page.toml").write_text('"One is checked" = "design"\n')
    command = [sys.executable, "-m", "tests.sentences", "page.md"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "Another is not.\n", done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_every_check_of_a_page_exists(page: str) -> None:
    for check in {name for each in checks_of(page) for name in each.by}:
        path, _, rest = check.partition("::" if "::" in check else ": ")
        if path == "CONTRIBUTING.md":
            assert rest
            assert f"\n- {rest}" in (CHECKOUT / path).read_text(), check
        elif rest:
            assert f"def {rest}(" in (CHECKOUT / path).read_text(), check
        elif path.startswith("bench/"):
            assert path in (CHECKOUT / "docs/benchmarks.md").read_text()
            assert (CHECKOUT / path).exists(), check
        else:
            assert path in {"pyproject.toml", *NO_PROMISE}, check


def test_every_row_of_what_is_supported_names_a_test_which_runs_or_is_called_thorough() -> None:
    page = (CHECKOUT / "docs/supported.md").read_text()
    rows = [row for row in re.findall(r"^\| .* \|$", page, re.M) if "| tested by |" not in row]
    told = r"`tests/|\| (?:the same\b|all other tests|\*not tested\*)"
    assert [row for row in rows if not re.search(told, row)] == []
    count = 0
    for row in rows:
        for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row):
            count += 1
            assert f"def {name}(" in (CHECKOUT / path).read_text(), f"{path}::{name}"
            assert "thorough" in row or not is_thorough(path, name), row
    assert count > 10


def is_thorough(path: str, name: str) -> bool:
    """Whether all variants of a test are thorough."""
    before, _, _ = (CHECKOUT / path).read_text().partition(f"def {name}(")
    decorators = before.rpartition("\n\n\n")[2]
    return "\npytestmark = pytest.mark.thorough\n" in before or (
        "@pytest.mark.thorough\n" in decorators
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("", {"not thorough"}), ("thorough=True", set()), ("fast=True", {"not thorough", "ignored"})],
)
def test_inv_test_leaves_out_thorough_or_slow_tests_unless_it_is_asked_for_them(
    flags: str, expected: set[str]
) -> None:
    program = f"import tasks; print(*tasks.selection({flags}), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    chosen = done.stdout.split("\n")
    assert ("not thorough" in chosen) is ("not thorough" in expected)
    assert ("--ignore=tests/fleet" in chosen) is ("ignored" in expected)


def test_the_celery_and_python_that_the_page_of_what_is_supported_names_are_those_of_the_tests() -> (
    None
):
    lock = (CHECKOUT / "requirements.lock").read_text()
    celery = re.search(r"^celery==(\d+\.\d+)", lock, re.M)
    assert celery
    workflow = (CHECKOUT / ".github/workflows/test.yml").read_text()
    python = re.search(r'^ +python-version: "(\S+)"$', workflow, re.M)
    assert python
    row = f"| Python {python[1]} with Celery {celery[1]}: everything else | all other tests |"
    assert row in (CHECKOUT / "docs/supported.md").read_text()


HOW_TO = ("systemd.md", "django.md", "cron.md", "alerts.md", "several-applications.md")


@pytest.mark.parametrize("page", HOW_TO)
def test_the_inventory_of_a_how_to_page_works(page: str, tmp_path: Path) -> None:
    (example,) = examples(page)
    (tmp_path / "inventory.yaml").write_text(example)
    inventory = load_inventory(tmp_path / "inventory.yaml")
    assert build_fleet(inventory, tuple(inventory.hosts), named="shop").hosts


def test_the_probe_of_the_django_page_fails_until_the_migrations_are_applied(
    tmp_path: Path,
) -> None:
    (example,) = examples("django.md")
    (probe,) = yaml.safe_load(example)["all"]["children"]["shop"]["vars"]["celery_probes"]
    django = [sys.executable, "-m", "django", "startproject", "shop", str(tmp_path)]
    subprocess.run(django, check=True)
    secret = b"SECRET_KEY='a$b (c) & #d'\n"
    (tmp_path / "shop.env").write_bytes(secret)
    assert read(secret, "systemd").values == {"SECRET_KEY": "a$b (c) & #d"}
    with (tmp_path / "shop/settings.py").open("a") as settings:
        settings.write('import os\nSECRET_KEY = os.environ["SECRET_KEY"]\n')
        settings.write('assert SECRET_KEY == "a$b (c) & #d"\n')
    command = probe["command"].replace("/etc/shop.env", f"{tmp_path}/shop.env")
    command = command.replace("/srv/shop/venv/bin/python", sys.executable)

    def ran(line: str) -> tuple[int, str]:
        words = ["sh", "-c", line]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    code, out = ran(command)
    assert (code, "auth.0001_initial" in out) == (1, True), out
    ran(command.replace("--plan --check", ""))
    assert ran(command)[0] == 0


def test_two_applications_are_told_apart_as_the_page_shows(tmp_path: Path) -> None:
    (example,) = examples("several-applications.md")
    (tmp_path / "inventory.yaml").write_text(example)
    program = [sys.executable, str(CHECKOUT / "tasks.py")]
    for command, code in {"inv hosts": 5, "inv hosts -A mail": 0}.items():
        words = command.split()[1:]
        done = subprocess.run(
            [*program, *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == code
        require_shown("several-applications.md", command, done.stdout + done.stderr)


def test_what_the_pages_show_of_a_command_is_compared_with_what_it_prints() -> None:
    tests = "".join(path.read_text() for path in (CHECKOUT / "tests").rglob("test_*.py"))
    for page in (CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")):
        for command in re.findall(r"^    \$ (.+)\n    (?!\$ )\S", page.read_text(), re.MULTILINE):
            assert f'"{command}"' in tests, f"{page.name}: {command}"


@pytest.mark.parametrize(
    ("page", "other"), [("README.md", "README.ru.md"), ("docs/start.md", "docs/start.ru.md")]
)
def test_the_russian_page_has_the_same_commands(page: str, other: str) -> None:
    assert commands(page)
    assert commands(page) == commands(other)


def commands(page: str) -> list[str]:
    """Each command that a page shows by itself, in their order, without what is said beside it."""
    lines = (CHECKOUT / page).read_text().splitlines()
    typed = (
        line.strip()
        for line in lines
        if re.match(r" {4}(?:\$ |\./inv |celery-runbooks |pipx |cd )", line)
    )
    return [re.split(r"\s{2,}#", line)[0] for line in typed]


def test_the_pages_make_a_site_without_a_warning_and_every_link_and_anchor_leads_somewhere(
    tmp_path: Path,
) -> None:
    build = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path),
    ]
    done = subprocess.run(build, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert 'id="queueno_consumer"' in (tmp_path / "findings.html").read_text()
    from_elsewhere = r'<(?!a )[^>]* (?:src|href)="(?:https?:)?//'
    assert not re.search(from_elsewhere, (tmp_path / "index.html").read_text())


@pytest.mark.parametrize("page", ["README.md", "README.ru.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_link_beside_the_pages_leads_somewhere(page: str) -> None:
    text = (CHECKOUT / page).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        linked = CHECKOUT / (path or page)
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text()), target


def anchors(text: str) -> set[str]:
    """Those of a page's headings."""
    return {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.M)
    }


def test_every_page_is_listed_on_the_first() -> None:
    linked = set(re.findall(r"\]\(([\w.-]+\.md)\)", (CHECKOUT / "docs/index.md").read_text()))
    assert linked == {path.name for path in (CHECKOUT / "docs").glob("*.md")} - {"index.md"}


def test_each_room_says_what_is_in_it_and_what_it_may_import() -> None:
    rooms = [path.parent for path in (CHECKOUT / "runbooks").glob("*/__init__.py")]
    assert len(rooms) > 10
    for room in rooms:
        said = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
        assert "import" in said, room


def test_the_readme_is_short() -> None:
    assert len((CHECKOUT / "README.md").read_text().splitlines()) < 150

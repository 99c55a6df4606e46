"""The values of an inventory: as Ansible has them, nothing escapes the sandbox, and what is secret
stays so.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from runbooks.core.errors import InventoryError
from runbooks.inventory.read import load_inventory
from runbooks.inventory.values import Renderer, Values


def values_of(folder: Path, text: str) -> Values:
    """The values of host `h`; `text` is what stands below it."""
    (folder / "inventory.yaml").write_text("all:\n  hosts:\n    h:\n" + text)
    return Renderer(load_inventory(folder / "inventory.yaml")).hosts["h"]


@pytest.fixture
def render(tmp_path: Path) -> Any:
    def render(value: Any, context: Mapping[str, Any] | None = None) -> Any:
        body = yaml.safe_dump({"value": value, **(context or {})}, indent=2)
        return values_of(tmp_path, "".join(f"      {line}\n" for line in body.splitlines()))[
            "value"
        ]

    return render


@pytest.fixture
def error_of(render: Any) -> Any:
    def error_of(value: Any, context: Mapping[str, Any] | None = None) -> str:
        with pytest.raises(InventoryError) as caught:
            render(value, context)
        (problem,) = caught.value.problems
        return problem.partition(": value: ")[2] or problem

    return error_of


# --- Jinja


def test_an_expression_keeps_its_type(render: Any) -> None:
    context = {"some": [1, {"a": True}], "number": 5, "digits": "012", "nothing": None}
    assert render("{{ some }}", context) == [1, {"a": True}]
    assert render("{{ number + 1 }}", context) == 6
    assert render("{{ digits }}", context) == "012"
    assert render("{{ nothing }}", context) is None
    assert render("{% if number > 1 %}{{ some }}{% endif %}", context) == [1, {"a": True}]
    assert render("{{ some | map('string') }}", context) == ["1", "{'a': True}"]


def test_several_parts_are_joined_as_text(render: Any) -> None:
    assert render("{{ 1 }}{{ 2 }}") == "12"
    assert render(" {{ [1] }}") == " [1]"
    assert render("a{{ none }}b") == "ab"


def test_a_final_newline_of_a_value_stays(render: Any) -> None:
    assert render("{{ x }}\n", {"x": "y"}) == "y\n"


def test_strings_are_rendered_in_maps_and_lists_and_other_scalars_stay_as_they_are(
    render: Any,
) -> None:
    value = {"a": ["{{ x }}", 1, True, None], "b": {"c": "-{{ x }}-"}, "d": 1.5}
    assert render(value, {"x": "y"}) == {"a": ["y", 1, True, None], "b": {"c": "-y-"}, "d": 1.5}


def test_a_variable_that_holds_jinja_is_rendered_where_it_is_used(render: Any) -> None:
    context = {
        "a": "{{ b }}/a",
        "b": "{{ c.d }}/b",
        "c": {"d": "c", "unused": "{{ nope }}"},
        "other": "{{ nope }}",
    }
    assert render("{{ a }}", context) == "c/b/a"


def test_a_value_that_cannot_be_had_troubles_only_who_uses_it(render: Any) -> None:
    context = {"broken": "{{ lookup('file', '/no/such') }}", "used": "good"}
    assert render("{{ broken if false else used }}", context) == "good"


def test_what_is_undefined_is_an_error_and_not_an_empty_string(render: Any, error_of: Any) -> None:
    assert "'nothing' is undefined" in error_of("x{{ nothing }}")
    assert "'nothing' is undefined" in error_of(["{{ [nothing] }}"])
    assert "no attribute 'b'" in error_of("{{ a.b }}", {"a": {}})
    assert render("{{ nothing | default('x') }}{{ 'y' if nothing is defined }}") == "x"
    assert render("{{ nothing.at.all | default('x') }}") == "x"
    assert render("{{ a | default('x') }}", {"a": "{{ nothing }}"}) == "x"


def test_a_default_does_not_hide_what_failed_for_another_reason(error_of: Any) -> None:
    assert "No such file" in error_of(
        "{{ a | default('x') }}", {"a": "{{ lookup('file', '/no/such') }}"}
    )


def test_undef_says_what_to_do(error_of: Any) -> None:
    value = (
        "{{ lookup('file', '/no/such', errors='ignore') or undef(hint='put up the sandbox"
        " first') }}"
    )
    assert error_of(value) == "put up the sandbox first"
    assert error_of("{{ nope | mandatory('set nope') }}") == "set nope"


@pytest.mark.parametrize(
    ("context", "trail"),
    [
        ({"a": "{{ a }}"}, "a → a"),
        ({"a": "{{ b }}", "b": "{{ c }}", "c": "{{ a }}"}, "a → b → c → a"),
        ({"a": {"x": "{{ a.x }}"}}, "a → a"),
        ({"a": "{{ hostvars['h'].a }}"}, "a → a"),
    ],
)
def test_a_variable_that_needs_itself_is_reported_as_the_circle_it_is(
    error_of: Any, context: Mapping[str, Any], trail: str
) -> None:
    assert error_of("{{ a }}", context).endswith(f"a: is defined by itself: {trail}")


def test_another_host_and_the_groups_can_be_asked_for(tmp_path: Path) -> None:
    text = '      v: "{{ hostvars[groups.db[0]].ansible_host }}"\n'
    text += 'db:\n  hosts:\n    d: {ansible_host: "10.0.0.{{ 2 + 3 }}"}\n'
    assert values_of(tmp_path, text)["v"] == "10.0.0.5"


def test_an_unsafe_value_is_not_rendered(tmp_path: Path) -> None:
    assert values_of(tmp_path, "      v: !unsafe '{{ x }}'\n")["v"] == "{{ x }}"


def test_the_filters_do_what_they_do_for_ansible(render: Any) -> None:
    assert render("{{ 'ä' | b64encode }}") == "w6Q="
    assert render("{{ 'w6Q=' | ansible.builtin.b64decode }}") == "ä"
    assert render("{{ {'a': {'b': 1}} | combine({'a': {'c': 2}}, recursive=True) }}") == {
        "a": {"b": 1, "c": 2}
    }
    assert render("{{ 'yes' | bool }}") is True
    assert render("{{ 'a b' | quote }}") == "'a b'"


def test_a_problem_is_reported_with_the_file_and_line_it_is_in(tmp_path: Path) -> None:
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars/all.yml").write_text("# the base\nbase: '{{ nope }}/x'\n")
    values = values_of(
        tmp_path, "      v:\n        - good\n        - '{{ base }}'\n        - '{{ 1 / 0 }}'\n"
    )
    with pytest.raises(InventoryError) as caught:
        values["v"]
    assert caught.value.problems == [
        f"{tmp_path}/group_vars/all.yml:2: base: 'nope' is undefined",
        f"{tmp_path}/inventory.yaml:7: v: division by zero",
    ]


# --- lookups


def test_a_secret_is_looked_up_in_a_file_without_its_last_newline(
    render: Any, tmp_path: Path
) -> None:
    (tmp_path / "url").write_text("redis://:pä ss@h/0\n")
    assert render("{{ lookup('file', inventory_dir ~ '/url') }}") == "redis://:pä ss@h/0"
    assert (
        render("{{ lookup('ansible.builtin.file', inventory_dir ~ '/url') }}")
        == "redis://:pä ss@h/0"
    )


def test_a_secret_is_looked_up_in_the_environment(
    render: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_PASSWORD", "s3cret")
    monkeypatch.delenv("NOT_SET", raising=False)
    assert (
        render("{{ lookup('env', 'BROKER_PASSWORD') }}{{ lookup('env', 'NOT_SET') }}") == "s3cret"
    )
    assert render("{{ lookup('env', 'NOT_SET', default='x') }}") == "x"


def test_a_secret_comes_from_a_command_which_runs_once(render: Any, tmp_path: Path) -> None:
    count = f"echo run >> {tmp_path}/log; echo s3cret"
    assert (
        render(f"{{{{ lookup('pipe', '{count}') }}}}{{{{ lookup('pipe', '{count}') }}}}")
        == "s3crets3cret"
    )
    assert (tmp_path / "log").read_text() == "run\n"
    value = f"{{{{ lookup('pipe', '{count}') }}}}"
    hosts = json.dumps({name: {"v": value} for name in ("one", "two")})
    (tmp_path / "inventory.yaml").write_text(f"all: {{hosts: {hosts}}}\n")
    both = Renderer(load_inventory(tmp_path / "inventory.yaml")).hosts
    assert (both["one"]["v"], both["two"]["v"]) == ("s3cret", "s3cret")
    assert (tmp_path / "log").read_text() == "run\nrun\n", "once for all hosts"


def test_a_command_that_fails_is_reported_without_its_arguments(error_of: Any) -> None:
    assert (
        error_of("{{ lookup('pipe', 'false --token hunter2') }}")
        == "lookup('pipe'): 'false' ended with exit code 1"
    )


def test_a_file_that_cannot_be_looked_up_is_reported_with_its_path(
    error_of: Any, tmp_path: Path
) -> None:
    assert (
        error_of("{{ lookup('file', '/no/such') }}")
        == "lookup('file'): No such file or directory: /no/such"
    )
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "decode" in error_of(f"{{{{ lookup('file', '{tmp_path}/binary') }}}}")


@pytest.mark.parametrize("kind", ["password", "url", "community.hashi_vault.vault_read", "lines"])
def test_another_lookup_is_not_supported(error_of: Any, kind: str) -> None:
    assert (
        error_of(f"{{{{ lookup('{kind}', 'id') }}}}")
        == f"lookup('{kind}') is not supported; 'file', 'env' and 'pipe' are"
    )


def test_what_was_looked_up_is_not_in_the_message_of_an_error(
    error_of: Any, tmp_path: Path
) -> None:
    (tmp_path / "url").write_text("hunter2")
    assert "hunter2" not in error_of("{{ {}[lookup('file', inventory_dir ~ '/url')] }}")
    assert "hunter2" not in error_of(
        "{{ lookup('file', inventory_dir ~ '/url') | mandatory | from_json }}"
    )


# --- the sandbox


@pytest.mark.parametrize(
    "expression",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ ''|attr('__class__') }}",
        "{{ ().__class__.__base__.__subclasses__() }}",
        "{{ lookup.__globals__ }}",
        "{{ lookup.__call__ }}",
        "{{ lookup._vault }}",
        "{{ hostvars['h']._renderer }}",
        "{{ hostvars['h'].__class__ }}",
        "{{ lookup.__globals__['os'].system('id') }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ self.__init__.__globals__ }}",
        "{{ '{0.__class__}'.format('') }}",
        "{{ ''.format_map({}).__class__ }}",
        "{{ x.append(1) }}",
        "{{ x.clear() }}",
        "{% set _ = d.update(a=1) %}",
        "{{ range(10000000) | list }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_an_expression_cannot_leave_the_sandbox(error_of: Any, expression: str) -> None:
    error_of(expression, {"x": [0], "d": {"b": 0}})


@pytest.mark.parametrize(
    "expression",
    [
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{{ lookup('file') }}",
        "{{ lookup(3, 4) }}",
        "{{ x",
        "{{ range(3) }}",
        "{{ lookup }}",
    ],
)
def test_whatever_goes_wrong_in_an_expression_is_a_message_and_no_traceback(
    error_of: Any, expression: str
) -> None:
    assert error_of(expression)


def test_the_environment_is_not_changed_by_reading_it(render: Any) -> None:
    before = dict(os.environ)
    render("{{ lookup('env', 'HOME') }}")
    assert dict(os.environ) == before

"""Inventories made at random from a seed, with everything that Ansible's format has, and `--limit`
patterns.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

GROUPS = ("web", "db", "canary", "eu", "us", "app", "site-1", "zz", "blue", "ungrouped")
HOSTS = (
    "web1", "web2", "db1", "lone", "10.0.0.7", "h.example.com", "'17'", "web[1:3]", "db[01:03].x", "node[1:7:3]",
    "n[a:c]", "r[1:2]c[a:b]", "web2:2222", "p[8:10]:22", '"[2001:db8::1]:2200"', '"2001:db8::9"', "under_score",
    "q[:2]",
)  # fmt: skip
NAMES = ("x", "y", "z", "celery_app", "ansible_user", "ansible_port", "some_map")
SCALARS = (
    "1", "0644", "'0644'", "0x1F", "1_000", "1e3", "1.0e+3", "1.5", ".5", ".inf", "yes", "Off", "y", "True", "'yes'",
    "~", "null", "''", "text", "'{{ x }}'", '"{{ y | default(1) }}-a"', "2020-01-01", "2020-01-01 10:00:00", "1:30",
    "190:20:30",
    "0o14", "0b11", "-0", "+1", '"a\\tb\\u00e4"', "ünï", "a b # no", "!unsafe '{{ x }}'", "<<x", "1.2.3", "0.",
    "[]", "{}",
    "|\n  two\n  lines", ">-\n  folded\n  text", "[1, two, {a: yes}]", "{a: 1, b: [x, ~], yes: 2, 3: c}", "!!str 5",
    "\n  <<: {b: 1, c: 2}\n  c: 3", "\n- 1\n- {k: v}", "2020-01-01T10:00:00Z", "'a: b'", "12e03", "1__0", "0_7",
)  # fmt: skip
WRONG = (
    "[a]",
    "5",
    "true",
    "'text'",
    "=",
    "{{ x }}",
    "2020-13-45",
    "!no 1",
    "[",
    "{a: 1, a: 2}",
    "*no",
)


@dataclass
class Case:
    """An inventory's text, the files beside it, and what is to be asked of it."""

    text: str
    files: dict[str, str] = field(default_factory=dict)
    limits: tuple[str, ...] = ()
    name: str = "inventory.yaml"

    def write(self, folder: Path) -> tuple[Path, ...]:
        """Write all files; returns the inventory's sources."""
        for name, text in (self.files | {self.name: self.text}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        return (folder / self.name,)


def make_case(seed: int) -> Case:
    draw = Random(seed)
    maker = _Maker(draw, wrong=draw.random() < 0.15)
    text = maker.inventory()
    return Case(text, maker.files(), tuple(maker.limit() for _ in range(6)))


class _Maker:
    def __init__(self, draw: Random, *, wrong: bool) -> None:
        self.draw, self.wrong = draw, wrong
        self.depth = draw.choice((0, 1, 2, 3))
        self.ancestors: dict[str, set[str]] = {}

    def may(self, probability: float) -> bool:
        return self.draw.random() < probability

    def inventory(self) -> str:
        if self.may(0.1):
            return json.dumps(self.json_group_map())
        tops = self.draw.sample(GROUPS, self.draw.randint(0, 3))
        names = ["all", *tops] if self.may(0.8) or not tops else tops
        self.draw.shuffle(names)
        return "---\n" * self.may(0.3) + "".join(self.group((name,), self.depth) for name in names)

    def json_group_map(self) -> dict[str, Any]:
        hosts = {
            f"web{n}": {"x": self.draw.choice((1, 1e3, "yes", None, True, 1.5))} for n in range(3)
        }
        return {"all": {"hosts": hosts, "vars": {"y": [1, {"a": 2.5e-7}]}}}

    def group(self, way: tuple[str, ...], depth: int) -> str:
        name, indent = way[-1], 4 * len(way) - 4
        if self.wrong and self.may(0.05):
            return f"{' ' * indent}{name}: {self.draw.choice(WRONG)}\n"
        sections = [self.hosts(indent + 2)] if self.may(0.8) else []
        sections += (
            [self.section("vars", indent + 2, self.variables(indent + 4, priority=True))]
            if self.may(0.7)
            else []
        )
        if depth and name != "ungrouped" and self.may(0.8):
            inner = self.draw.sample(GROUPS[:-1], self.draw.randint(1, 3))
            allowed = (
                inner if self.wrong else [child for child in inner if child not in self.above(way)]
            )
            children = "".join(self.group((*way, child), depth - 1) for child in allowed)
            sections.append(self.section("children", indent + 2, children))
        self.draw.shuffle(sections)
        return f"{' ' * indent}{name}:\n" + "".join(sections)

    def above(self, way: tuple[str, ...]) -> set[str]:
        """The groups that cannot be below this one, for then it would be below itself; notes what
        is below what.
        """
        for place, name in enumerate(way):
            self.ancestors.setdefault(name, set()).update(way[:place])
        found, new = set(way), set(way)
        while new:
            new = {above for name in new for above in self.ancestors.get(name, ())} - found
            found |= new
        return found

    def section(self, name: str, indent: int, body: str) -> str:
        if self.wrong and self.may(0.05):
            name = self.draw.choice((f"{name}s", f"{name[:-1]}"))
        return f"{' ' * indent}{name}:\n{body}"

    def hosts(self, indent: int) -> str:
        if self.may(0.05):
            return f"{' ' * indent}hosts: web1\n"
        names = self.draw.sample(HOSTS, self.draw.randint(1, 4))
        names += (
            [self.draw.choice(("17", "web[3:1]", "web1", "web-:22", "no[x]"))]
            if self.wrong and self.may(0.2)
            else []
        )
        bodies = [
            (
                "\n" + self.variables(indent + 4)
                if self.may(0.5)
                else self.draw.choice(("", " {}", " ~", " []"))
            )
            for _ in names
        ]
        lines = [
            f"{' ' * (indent + 2)}{name}:{body.rstrip()}\n"
            for name, body in zip(names, bodies, strict=True)
        ]
        return self.section("hosts", indent, "".join(lines))

    def variables(self, indent: int, *, priority: bool = False) -> str:
        names = self.draw.sample(NAMES, self.draw.randint(1, 3))
        names += ["ansible_group_priority"] if priority and self.may(0.3) else []
        return "".join(f"{' ' * indent}{name}: {self.value(name, indent)}\n" for name in names)

    def value(self, name: str, indent: int) -> str:
        if name == "ansible_group_priority":
            return self.draw.choice(
                ("0", "2", "'10'", "-1") + (("high", "~") if self.wrong else ())
            )
        scalars = WRONG if self.wrong and self.may(0.03) else SCALARS
        return self.draw.choice(scalars).replace("\n", "\n" + " " * indent)

    def files(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for folder, names in (
            ("group_vars", ("all", *GROUPS)),
            ("host_vars", ("web1", "db01.x", "h.example.com", "17")),
        ):
            for name in names:
                if self.may(0.15):
                    found |= {
                        f"{folder}/{name}{rest}": text for rest, text in self.beside().items()
                    }
        return found

    def beside(self) -> dict[str, str]:
        rests = self.draw.choice(
            (("",), (".yml",), (".yaml",), (".json",), (".yml", ".yaml"), (".txt",), ("/a.yml", "/b", "/sub/c.yaml"),
             ("/.hidden.yml", "/back.yml~", "/x.txt", "/sub.d/no.yml", "/z.json"), (".yml/one.yml",))
        )  # fmt: skip
        return {rest: self.file(rest) for rest in rests}

    def file(self, rest: str) -> str:
        if rest.endswith(".json") or self.may(0.1):
            return json.dumps(
                {
                    name: self.draw.choice((1, 2e3, "s", None, [1], {"k": False}))
                    for name in NAMES[:3]
                }
            )
        if self.may(0.1):
            return str(
                self.draw.choice(
                    ("", "---\n", "{}\n", *(("- a\n", "text\n") if self.wrong else ()))
                )
            )
        return self.variables(0)

    def limit(self) -> str:
        terms = [
            self.draw.choice(("", "", "", "&", "!")) + self.term()
            for _ in range(self.draw.randint(1, 3))
        ]
        return self.draw.choice((",", ":", ", ")).join(terms)

    def term(self) -> str:
        name = self.draw.choice(
            ("all", *GROUPS, "web1", "db01.x", "lone", "10.0.0.7", "2001:db8::1", "17")
        )
        pattern: str = self.draw.choice(
            (
                name,
                name,
                name,
                f"{name[0]}*",
                f"*{name[-1]}",
                f"~{name[0]}.*",
                "~(web|db)",
                "?eb*",
                "*",
            )
        )
        if self.may(0.2) and not pattern.startswith("~"):
            pattern += self.draw.choice(("[0]", "[-1]", "[1:2]", "[1:]", "[0:0]", "[5]", "[2:1]"))
        return pattern

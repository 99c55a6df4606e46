"""INI inventories made at random from a seed, with everything that Ansible's format has, and much
that it has not.
"""

from random import Random

from tests.ansible.generate import Case

GROUPS = ("web", "db", "canary", "eu", "app", "site-1", "zz", "all", "ungrouped", "prod.eu")
HOSTS = (
    "web1", "web2", "db1", "lone", "10.0.0.7", "h.example.com", "17", "web[1:3]", "db[01:03].x", "node[1:7:3]",
    "n[a:c]", "r[1:2]c[a:b]", "web2:2222", "p[8:10]:22", "[2001:db8::1]:2200", "2001:db8::9", "under_score", "q[:2]",
    "'web1'", '"lone"', "we\\b1", "ünï", "_x",
)  # fmt: skip
NAMES = (
    "x",
    "y",
    "z",
    "celery_app",
    "ansible_user",
    "ansible_port",
    "ansible_host",
    "some_map",
    "X-1",
    "a.b",
    "",
)
VALUES = (
    "1", "0644", "-5", "+1", "1.5", "1e3", ".5", "1_000", "0x1F", "0o14", "0b11", "1j", "yes", "True", "False", "true",
    "None", "null", "", "text", "a,b", "1,2", "(1,)", "()", "[]", "{}", "[1,'two',{'a':None}]", "{'a':1,'b':[True]}",
    "{1:2}", "b'bytes'", "...", "{'k'}", "'quoted'", "{{x}}", "{{y|default(1)}}-a", "a=b", "==", "/srv/x", "~", "#no",
    "x#y", "x;y", "\\x41", "\\\\", "C:\\new", "ünï", "2020-01-01", "10.0.0.1", "nan", "inf", "-", "1+1", "2**3", "1-1j",
    "lambda:0", "not", "f'x'", "'a''b'", "0777", "08", "1.", "{'a':1,'a':2}", "[[1,[2]],{'m':{'n':(1,2)}}]", "\"'\"",
    "u'x'", "r'\\n'", "'''x'''", "1if", "0_7", "$HOME", "%(x)s", "!vault", "|", "{%if%}", "00", "-0", "1L",
)  # fmt: skip
SPACED = (
    "'two words'", '"two words"', "'{{ x }}'", '"{{ y | default(1) }}"', "\"{'a': 1, 'b': [1, 2]}\"", "'[1, 2]'",
    "'\"5\"'", "\"'5'\"", "' 1'", "'1 # no'", "two\\ words", "'it'\\''s'", '"a \\" b"', '"\\\\n"', "''", "' '",
)  # fmt: skip
IN_SECTIONS = (
    "two words", "1 # a comment", "'quoted' # a comment", "text # no comment", "'it''s'", '"a" "b"', "1 ; x", "[1, 2]",
    "{'a': {'b': 'c d'}}", "{{ x }}", "{{ y | default('a b') }}", "a = b", "'unclosed", "(1, 2, )", "1 2", "- a", "\\",
    "-o ControlMaster=auto -o ControlPersist=60s", '-o ProxyCommand="ssh -W %h:%p jump"', "b'\\xc3\\xa4'", "'\\u00e4'",
)  # fmt: skip
WRONG = (
    "[web", "web]", "[]", "[ web ]", "[web:]", "[web:var]", "[web:hosts] x", "[a b]", "web1 x", "web1 x=1 y",
    "web1 'x=1", "web[3:1]", "web[1:2:0]", "no[x]", "x:", "---", "all:", "- web1", "[nobody:children]", "[nobody:vars]",
    "[web:vars] # c", "x=1", "web1,web2", '""', "[web];c", "{'a': 1}", "web1 x={[]:1}",
)  # fmt: skip
COMMENTS = ("# a comment", "; a comment", "", "   ", "\t", "  # indented")


def make_ini_case(seed: int) -> Case:
    draw = Random(seed)
    maker = _IniMaker(draw, wrong=draw.random() < 0.2)
    return Case(
        maker.text(),
        limits=tuple(maker.limit() for _ in range(4)),
        name=draw.choice(("hosts", "hosts.ini", "hosts.yml", "x.prod")),
    )


class _IniMaker:
    def __init__(self, draw: Random, *, wrong: bool) -> None:
        self.draw, self.wrong = draw, wrong
        self.above: dict[str, set[str]] = {name: set() for name in GROUPS}

    def may(self, probability: float) -> bool:
        return self.draw.random() < probability

    def text(self) -> str:
        sections = [self.section() for _ in range(self.draw.randint(0, 6))]
        missing = self.missing(sections)
        lines = [
            *self.hosts(self.draw.randint(0 if sections else 1, 2)),
            *(line for lines in sections for line in lines),
        ]
        for name in missing:
            lines += [f"[{name}]", *self.hosts(self.draw.randint(0, 2))]
        if not any("[" not in line and line for line in lines):
            lines.append("lone")
        end = self.draw.choice(("\n", "\n", "\n", "\r\n"))
        return end.join(self.dressed(line) for line in lines) + end * self.may(0.8)

    def missing(self, sections: list[list[str]]) -> list[str]:
        """Groups that are named and not declared; where nothing is to be wrong they are declared at
        the end.
        """
        heads = [section[0].split("]")[0].strip("[ ") for section in sections]
        declared = {head.split(":")[0] for head in heads if not head.endswith(":vars")} | {
            "all",
            "ungrouped",
        }
        named = {head.split(":")[0] for head in heads}
        for head, section in zip(heads, sections, strict=True):
            if head.endswith(":children"):
                named |= {line.split("#")[0].strip() for line in section[1:]}
        return (
            []
            if self.wrong and self.may(0.3)
            else sorted(name for name in named - declared if name)
        )

    def dressed(self, line: str) -> str:
        if self.wrong and self.may(0.04):
            line = self.draw.choice(WRONG)
        before = f"{self.draw.choice(COMMENTS)}\n" * self.may(0.1)
        return before + " " * self.draw.choice((0, 0, 0, 1, 4)) + line + " " * self.may(0.1)

    def section(self) -> list[str]:
        name, kind = (
            self.draw.choice(GROUPS),
            self.draw.choice(("", "", ":hosts", ":children", ":vars")),
        )
        if name == "ungrouped" and kind == ":children":
            kind = ""
        head = f"[{name}{kind}]" + self.draw.choice(
            ("", "", "", " # a comment", "# a comment", "  ")
        )
        if kind == ":children":
            return [head, *self.children(name)]
        if kind == ":vars":
            return [head, *(self.variable() for _ in range(self.draw.randint(0, 4)))]
        return [head, *self.hosts(self.draw.randint(0, 4))]

    def children(self, name: str) -> list[str]:
        lines = []
        for child in self.draw.sample(GROUPS[:-3], self.draw.randint(0, 3)):
            if child in {name, "all"} or (
                child in self.over(name) and not (self.wrong and self.may(0.1))
            ):
                continue
            self.above[child].add(name)
            lines.append(child + self.draw.choice(("", "", " # a comment", "  ")))
        return lines

    def over(self, name: str) -> set[str]:
        found, new = set[str](), {name}
        while new:
            new = {above for one in new for above in self.above[one]} - found
            found |= new
        return found

    def variable(self) -> str:
        if self.may(0.15):
            return f"ansible_group_priority={self.draw.choice((0, 2, 10, -1))}"
        equals = self.draw.choice(("=", "=", " = ", "= "))
        return f"{self.draw.choice(NAMES)}{equals}{self.draw.choice((*VALUES, *IN_SECTIONS))}"

    def hosts(self, count: int) -> list[str]:
        return [self.host() for _ in range(count)]

    def host(self) -> str:
        words = [self.draw.choice(HOSTS)]
        for _ in range(self.draw.choice((0, 0, 1, 2, 3))):
            words.append(f"{self.draw.choice(NAMES)}={self.draw.choice((*VALUES, *SPACED))}")
        comment = self.draw.choice(("", "", "", " # a comment", " #a=b"))
        return self.draw.choice((" ", "  ", "\t")).join(words) + comment

    def limit(self) -> str:
        name = self.draw.choice((*GROUPS, "web1", "db01.x", "lone", "10.0.0.7", "17"))
        term: str = self.draw.choice((name, name, f"{name[0]}*", f"~{name[0]}.*"))
        return self.draw.choice(("", "", "all:!", "all:&")) + term

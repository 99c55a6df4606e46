"""Inventories of several sources, in an order made at random from a seed: files, and folders of
files and folders.
"""

from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.ansible.generate import Case, make_case
from tests.ansible.generate_ini import make_ini_case

NAMES = (
    "hosts",
    "10-first.yml",
    "20-second.ini",
    "b.yaml",
    "Z",
    "a.prod",
    "x.json",
    "sub/hosts",
    "sub/deeper/one.yml",
)
IGNORED = (
    ".hidden",
    "old.bak",
    "notes.md",
    "x.txt",
    "hosts~",
    "ansible.cfg",
    "x.retry",
    "vars_plugins/x.py",
)


@dataclass
class SeveralSources(Case):
    """An inventory whose sources are `named`, in this order."""

    named: tuple[str, ...] = ()

    def write(self, folder: Path) -> tuple[Path, ...]:
        super().write(folder)
        return tuple(folder / name for name in self.named)


def make_sources_case(seed: int) -> Case:
    draw = Random(seed)
    files: dict[str, str] = {}
    named = []
    for number in range(draw.randint(1, 3)):
        folder = f"source{number}"
        if draw.random() < 0.6:
            named.append(folder)
            names = draw.sample(NAMES, draw.randint(1, 4))
            files |= {
                f"{folder}/{name}": "[nonsense" for name in draw.sample(IGNORED, draw.randint(0, 3))
            }
        else:
            names = [draw.choice(NAMES[:6])]
            named.append(f"{folder}/{names[0]}")
        files |= _beside(draw, draw.choice((folder, str(Path(f"{folder}/{names[0]}").parent))))
        for name in names:
            files[f"{folder}/{name}"] = _text(draw, name)
    draw.shuffle(named)
    return SeveralSources("", files, make_case(seed).limits, name="beside.md", named=tuple(named))


def _text(draw: Random, name: str) -> str:
    as_yaml = name.endswith((".yml", ".yaml", ".json")) or ("." not in name and draw.random() < 0.5)
    return (make_case if as_yaml else make_ini_case)(draw.randrange(10_000)).text


def _beside(draw: Random, folder: str) -> dict[str, str]:
    return {
        f"{folder}/{name}": text for name, text in make_case(draw.randrange(10_000)).files.items()
    }

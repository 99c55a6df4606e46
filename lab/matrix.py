"""The matrix: every fault injected on a healthy fleet, and what was found first; random pairs; and
calm fleets.

The rows are in docs/matrix.json, from which the table of docs/findings.md is made.
"""

import fnmatch
import subprocess
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from itertools import combinations
from pathlib import Path

from lab.faults.every import CALM, FAULTS
from lab.faults.fault import Fault, Means
from lab.faults.grounds import GROUNDS, Ground, look, look_at_plan
from lab.faults.rows import Row, load, save
from lab.world import CHECKOUT

PAIRS, SEED = 40, 19
_WELL_AGAIN_S = 30.0
_WHAT_COUNTS = ("runbooks", "templates", "lab")


@dataclass(frozen=True, slots=True)
class Trial:
    """What is made together on one ground, and the codes that have to be found then; none on a calm
    fleet.
    """

    name: str
    how: str
    ground: str
    codes: tuple[str, ...]
    first: tuple[str, ...]
    command: tuple[str, ...]
    means: tuple[Means, ...]
    says: str = ""


def trials(pairs: int = PAIRS) -> list[Trial]:
    """All of them: calm fleets, faults, and random pairs, which are the same each time."""
    calm = [
        Trial(f"healthy/{one.name}", one.how, one.ground, (), (), ("diagnose",), (one.make,))
        for one in CALM
    ]
    single = [trial_of(one) for one in FAULTS]
    possible = [(one, other) for one, other in combinations(FAULTS, 2) if _go_together(one, other)]
    chosen = sorted(possible, key=_by_chance)[:pairs]
    return list(_named_apart([*calm, *single, *(trial_of(*pair) for pair in chosen)]))


def _named_apart(found: Iterable[Trial]) -> Iterator[Trial]:
    """Several ways to make one code have names of their own."""
    times = Counter[str]()
    for one in found:
        times[one.name] += 1
        yield replace(one, name=f"{one.name} ({times[one.name]})") if times[one.name] > 1 else one


def _by_chance(pair: tuple[Fault, Fault]) -> str:
    """An order that is random, and that a fault more or less leaves as it is."""
    return sha256(f"{SEED} {pair[0].code} {pair[1].code}".encode()).hexdigest()


def _go_together(one: Fault, other: Fault) -> bool:
    alike = one.ground == other.ground and one.command == other.command and one.code != other.code
    seen_alone = one.alone or other.alone or one.says or other.says
    return alike and not (seen_alone or one.touches & other.touches)


def trial_of(*faults: Fault) -> Trial:
    """One fault, or several at once on one ground."""
    name, how = (
        " + ".join(parts) for parts in ([one.code for one in faults], [one.how for one in faults])
    )
    first = faults[0]
    return Trial(
        name, how, first.ground, tuple(one.code for one in faults), tuple(one.after or one.code for one in faults),
        first.command, tuple(one.inject for one in faults), first.says,
    )  # fmt: skip


# --- trying


def tried_alone(code: str, ground: Ground) -> Row:
    """Make the first fault of a code on a ground that is up, look, and undo it."""
    return tried(trial_of(next(one for one in FAULTS if one.code == code)), ground)


class Grounds:
    """Puts each ground up when it is first needed, and once more where a fault could not be undone
    on it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._up: dict[str, tuple[Ground, ExitStack]] = {}
        self._count = 0

    def of(self, kind: str) -> Ground:
        if kind not in self._up:
            self._count += 1
            stack = ExitStack()
            ground = stack.enter_context(_made(kind, self._folder / f"{kind}{self._count}"))
            self._up[kind] = ground, stack
        return self._up[kind][0]

    def give_up(self, kind: str) -> None:
        """Take a ground down; the next who asks gets a new one."""
        if kind in self._up:
            self._up.pop(kind)[1].close()

    def down(self) -> None:
        for kind in list(self._up):
            self.give_up(kind)


def _made(kind: str, folder: Path) -> AbstractContextManager[Ground]:
    folder.mkdir()
    return GROUNDS[kind](folder)


def attempt(trial: Trial, grounds: Grounds, commit: str) -> Row:
    """Try, and see that all is well again afterwards. Trouble is in the row."""
    try:
        ground = grounds.of(trial.ground)
        row = tried(trial, ground, commit)
        if left := _left(ground):
            row = replace(row, trouble=f"after it was undone: {', '.join(left)}")
    except Exception as error:  # its row reports why a fault failed; the next one is tried
        row = replace(_row(trial, commit), trouble=_short(error))
    if row.trouble:
        grounds.give_up(trial.ground)
    return row


def tried(trial: Trial, ground: Ground, commit: str = "") -> Row:
    """Make what a trial is about, look, and undo it."""
    with ExitStack() as stack:
        for means in trial.means:
            stack.enter_context(means(ground))
        if trial.says:
            seen = look_at_plan(ground, trial.command, trial.codes[0], trial.says)
        else:
            seen = look(ground, trial.command)
    top = [one for one in seen.findings if not one["caused_by"]]
    return replace(
        _row(trial, commit),
        found=[one["code"] for one in top if one["severity"] != "info"],
        folded=[one["code"] for one in seen.findings if one["caused_by"]],
        notes=[one["code"] for one in top if one["severity"] == "info"],
        seconds=round(seen.seconds, 1),
    )


def _row(trial: Trial, commit: str) -> Row:
    today = datetime.now(UTC).date().isoformat()
    how = trial.how
    if trial.command != ("diagnose",):
        how += f" (`inv {' '.join(trial.command)}`)"
    return Row(trial.name, how, trial.ground, list(trial.codes), commit, today, list(trial.first))


def _left(ground: Ground) -> list[str]:
    """What is still found when there was time enough for the ground to be well again."""
    deadline = time.monotonic() + _WELL_AGAIN_S
    while (faults := look(ground).faults) and time.monotonic() < deadline:
        time.sleep(0.5)
    return faults


def _short(error: BaseException) -> str:
    said = "".join(traceback.format_exception_only(error))
    return " ".join(said.split())[:300]


# --- what was tried


def commit_of_code() -> str:
    """The last commit that changed what a row depends on, with a `+` where something is not
    committed.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments, "--", *_WHAT_COUNTS], cwd=CHECKOUT, capture_output=True, text=True, check=True
        ).stdout.strip()  # fmt: skip

    return git("log", "-1", "--format=%h") + "+" * bool(git("status", "--porcelain"))


def run(only: str, ground: str, pairs: int) -> Iterator[Row]:
    """Try whatever has not been tried at this commit, or what `only` names; yield each row when it
    is written down.
    """
    every, rows, commit = trials(pairs), load(), commit_of_code()
    order = [trial.name for trial in every]
    chosen = [
        trial
        for trial in every
        if fnmatch.fnmatch(trial.name, only or "*")
        and ground in ("", trial.ground)
        and (only or trial.name not in rows or rows[trial.name].commit != commit)
    ]
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        grounds = Grounds(Path(folder))
        try:
            for kind in GROUNDS:
                for trial in chosen:
                    if trial.ground == kind:
                        row = attempt(trial, grounds, commit)
                        save(
                            {**load(), row.name: row}, order
                        )  # another run may try another ground meanwhile
                        yield row
                grounds.give_up(kind)
        finally:
            grounds.down()

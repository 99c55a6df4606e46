"""Set variables in an environment file; the rest of the file stays."""

from runbooks.core.effects import SetEnvironment, WriteFile, sha256
from runbooks.core.envfile.edit import edit, read
from runbooks.core.errors import StalePlan
from runbooks.core.fleet import FleetHost
from runbooks.core.model import FileState, HostState
from runbooks.core.reporter import Outcome
from runbooks.effects.base import CHANGED_BY_OTHERS, Rank, ReverseOnHost
from runbooks.effects.files import write

_AGAIN = "run the command again"


class SetEnvironmentHandler(ReverseOnHost[SetEnvironment]):
    """The other variables of the file are kept in memory only, never recorded."""

    rank = Rank.CHANGE
    leaves_nothing_after = Outcome.FAILED
    service = ""
    stops = False
    starts = False
    waits = False

    @property
    def reads(self) -> str:
        """See OnHost."""
        return self.effect.path

    @property
    def summary(self) -> str:
        """See ReverseOnHost."""
        return f"restore {', '.join(self.effect.values)} in {self.effect.path}"

    def fragment(self, host: FleetHost, read: FileState | None) -> str:
        """See OnHost."""
        assert read is not None
        return write(as_write(self.effect, read))

    def judge(self, state: HostState) -> tuple[Outcome, str]:
        """See ReverseOnHost."""
        effect = self.effect
        if state.files[effect.path].is_folder:
            return Outcome.CANNOT, "a folder is in its place now"
        found = read(state.files[effect.path].content or b"", effect.reader).values
        wanted = effect.values.items()
        if all(found.get(name) == value for name, value in wanted):
            return Outcome.ALREADY, "nothing to undo"
        for name, value in wanted:
            if found.get(name) not in (effect.replaces[name], value):
                return CHANGED_BY_OTHERS
        return Outcome.CHANGED, ""


def as_write(effect: SetEnvironment, actual: FileState) -> WriteFile:
    """Return the write that sets the variables in the current file and keeps its mode.

    Raises StalePlan if a variable is neither at its old nor at its new value, or cannot be set in
    the current file.
    """
    if actual.is_folder:
        problem = f"{effect.path} cannot be read: it is a folder now"
        raise StalePlan(problem, _AGAIN)
    content = actual.content or b""
    found = read(content, effect.reader).values
    for name, value in effect.values.items():
        if found.get(name) not in (effect.replaces.get(name), value):
            problem = f"{effect.path}: {name} has changed since the look"
            raise StalePlan(problem, _AGAIN)
    try:
        new = edit(content, effect.reader, effect.values, effect.as_written)
    except ValueError as error:
        raise StalePlan(f"{effect.path}: {error}", _AGAIN) from None
    wanted: bytes | None = new
    if effect.was_absent and not new:
        wanted = None
    return WriteFile(
        effect.path,
        wanted,
        actual.mode or 0o640,
        sha256(actual.content),
        changed_at=effect.changed_at,
    )

"""The `runbooks` command of an installed package: the same verbs without a tasks.py."""

from importlib.metadata import version

from invoke.collection import Collection
from invoke.exceptions import Exit, ParseError
from invoke.program import Program

from runbooks import verbs


class RunbooksProgram(Program):
    """Invoke's program, with this tool's exit code for a command line that cannot be parsed."""

    def parse_tasks(self) -> None:
        try:
            super().parse_tasks()
        except ParseError as error:
            raise Exit(str(error), code=5) from None


def main() -> None:
    namespace = Collection.from_module(verbs)
    RunbooksProgram(version=version("celery-runbooks"), namespace=namespace, name="runbooks", binary="runbooks").run()

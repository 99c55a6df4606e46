"""`inv init`: write a commented example of an inventory."""

from pathlib import Path

from runbooks.core.command import Command
from runbooks.core.errors import ExitCode, UsageError
from runbooks.core.reporter import Reporter


def init(reporter: Reporter, example: Path, file: Path, *, is_default: bool) -> ExitCode:
    """Write the `example` to a new `file`, and show the next commands.

    These name the file unless it `is_default`. Raises UsageError if the file already exists or
    cannot be written.
    """
    text = example.read_bytes()
    try:
        with file.open("xb") as new:
            new.write(text)
    except FileExistsError:
        raise UsageError(f"{file} already exists; not changed", "name another file") from None
    except OSError as error:
        why = f"cannot write {file}: {error.strerror}"
        raise UsageError(why, "name another file") from None
    named = () if is_default else ("--inventory", str(file))
    reporter.message(f"Wrote {file}. Edit it: its values are examples.")
    reporter.next_step("Then check the inventory", Command("hosts", *named))
    reporter.next_step("Then diagnose the fleet", Command("diagnose", *named))
    return ExitCode.OK

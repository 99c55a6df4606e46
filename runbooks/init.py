"""`inv init`: writes a commented example of an inventory, to be made one's own."""

from pathlib import Path

from runbooks.core.command import Command
from runbooks.core.errors import ExitCode, UsageError
from runbooks.core.reporter import Reporter


def init(reporter: Reporter, example: Path, file: Path, *, is_default: bool) -> ExitCode:
    """Write the `example` into a new `file`, which later commands have to name unless it
    `is_default`.

    Raises UsageError where the file is there already, or cannot be written.
    """
    text = example.read_bytes()
    try:
        with file.open("xb") as new:
            new.write(text)
    except FileExistsError:
        raise UsageError(
            f"{file} is there already, and is left as it is", "name another file"
        ) from None
    except OSError as error:
        raise UsageError(
            f"{file} cannot be written: {error.strerror}", "name another file"
        ) from None
    named = () if is_default else ("--inventory", str(file))
    reporter.message(f"Wrote {file}: replace what stands there with your own.")
    reporter.next_step("What it comes to", Command("hosts", *named))
    reporter.next_step("What is wrong with the fleet", Command("diagnose", *named))
    return ExitCode.OK

"""Where the templates are that come with this tool."""

from pathlib import Path


def shipped_templates() -> Path:
    """`templates/`: in the wheel inside the package, else beside it."""
    package = Path(__file__).parents[1]
    return next(
        path for path in (package / "templates", package.parent / "templates") if path.is_dir()
    )

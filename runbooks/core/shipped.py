"""The templates that come with this tool."""

from pathlib import Path


def shipped_templates() -> Path:
    """Their folder: in a wheel inside the package, in a checkout next to it."""
    package = Path(__file__).parents[1]
    inside = package / "templates"
    if inside.is_dir():
        return inside
    return package.parent / "templates"

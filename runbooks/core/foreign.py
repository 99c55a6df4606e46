"""What others have set up to run workers: what this tool needs to know to take it over."""

from msgspec import Struct, field

from runbooks.core.secret_records import Discreet


class UnitText(Discreet, frozen=True):
    """A systemd unit that this tool did not write."""

    HIDDEN = ("settings",)

    links: tuple[tuple[str, str], ...]
    """The links that start it with the host: path and target."""
    pulled_by: tuple[str, ...]
    """The units that start it without such a link."""
    settings: tuple[tuple[str, str], ...]
    """The lines of its `[Service]` sections, drop-ins last: key, value. They may hold secrets."""


class ConfFile(Discreet, frozen=True):
    """A conf file of supervisord; it may hold secrets."""

    HIDDEN = ("content",)

    content: bytes
    """What it contains."""
    mode: int
    """Its permissions."""
    changed_at: float
    """When it last changed."""


class Program(Struct, frozen=True):
    """A program of supervisord that runs, or would start with supervisord the next time."""

    section: str
    """The section of the conf file that describes it."""
    path: str
    """The conf file."""
    pids: dict[str, int]
    """The main processes of those that run, by full name."""
    stop_wait_s: float
    """After so long a stop kills what is left."""
    as_group: bool
    """Whether a stop also signals the processes of the pool."""
    names: tuple[str, ...]
    """The full names of all its processes."""


class Foreign(Struct, frozen=True):
    """What a host reported in addition to its census: units and programs, and what cron starts."""

    units: dict[str, UnitText]
    """Units by name; also each program, with what its conf file says, in the form of a unit."""
    started_by_cron: tuple[str, ...] = ()
    """Lines of crontabs that start Celery: file and number, with the schedule if it is a word
    (`@reboot`).
    """
    programs: dict[str, Program] = field(default_factory=dict)
    """The programs of supervisord, by name."""
    conf_files: dict[str, ConfFile] = field(default_factory=dict)
    """The conf files of these programs, by path."""
    no_programs: str = ""
    """Why the programs are not known."""

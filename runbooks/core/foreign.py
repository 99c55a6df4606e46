"""What somebody else has set up to run workers, as far as taking it over needs it."""

from msgspec import Struct, field

from runbooks.core.secret_records import Discreet


class UnitText(Discreet, frozen=True):
    """A unit of systemd's that is not this tool's.

    `pulled_by` are the units that start it, but for those that the `links` (path and where each
    leads) make do so. `settings` are the lines of its sections `[Service]`, drop-ins last, each as
    key and value; they may hold secrets.
    """

    HIDDEN = ("settings",)

    links: tuple[tuple[str, str], ...]
    pulled_by: tuple[str, ...]
    settings: tuple[tuple[str, str], ...]


class ConfFile(Discreet, frozen=True):
    """A conf file of supervisord's; it may hold secrets."""

    HIDDEN = ("content",)

    content: bytes
    mode: int
    changed_at: float


class Program(Struct, frozen=True):
    """A program of supervisord's that runs, or would start with it the next time.

    It is all processes of one `section` of a conf file (`path`). `names` are their full names,
    `pids` the main processes of those that run. A stop kills what is left after `stop_wait_s`;
    `as_group`: it tells the pool's processes to end, too.
    """

    section: str
    path: str
    pids: dict[str, int]
    stop_wait_s: float
    as_group: bool
    names: tuple[str, ...]


class Foreign(Struct, frozen=True):
    """What was asked of a host besides its census: units by their names, and where cron starts
    something.

    `programs` are those of supervisord, by the name that `units` has them under as well: what a
    conf file says of the user and the like, as a unit would. `conf_files` are theirs, by path.
    `no_programs` is why they are not known. `started_by_cron` are files with the number of the
    line, and with its schedule where that is a word (`@reboot`).
    """

    units: dict[str, UnitText]
    started_by_cron: tuple[str, ...] = ()
    programs: dict[str, Program] = field(default_factory=dict)
    conf_files: dict[str, ConfFile] = field(default_factory=dict)
    no_programs: str = ""

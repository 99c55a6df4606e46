"""What can be seen of a fleet without an inventory: its processes, and what runs them."""

from collections.abc import Mapping

from msgspec import Struct, field

from runbooks.core.application import Application
from runbooks.core.census import CeleryProcess, Census, Options
from runbooks.core.secret_records import Discreet


class SeenProcess(Struct, frozen=True):
    """What `/proc` shows of a worker or beat in addition to the census.

    In a container, paths are the container's.
    """

    directory: str = ""
    """Its working directory."""
    python: str = ""
    """The Python that runs it and has the application; "" if it cannot be seen."""
    logs: tuple[str, ...] = ()
    """The files that it writes its output to, and the one of `-f`."""
    extra: tuple[str, ...] = ()
    """The options that an inventory keeps unchanged."""


class Supervisord(Struct, frozen=True):
    """A supervisord of a host."""

    conf: str = ""
    """Its configuration file."""
    ctl: str = ""
    """Its `supervisorctl`."""
    why_unknown: str = ""
    """Why its programs are not known."""


class SeenContainer(Struct, frozen=True):
    """A container."""

    id: str
    """Its id."""
    name: str
    """Its name."""
    image: str = ""
    """Its image."""
    project: str = ""
    """Its Compose project; "": none."""
    folder: str = ""
    """The folder of the project, by Compose's labels."""
    files: tuple[str, ...] = ()
    """The Compose files of the project, by Compose's labels."""
    addresses: Mapping[str, str] = {}
    """Its address in each network."""
    aliases: tuple[str, ...] = ()
    """Its names in these networks."""
    published: Mapping[int, int] = {}
    """Ports of the container → ports of this machine."""


class SeenService(Struct, frozen=True):
    """A unit, program or container that starts a worker or beat, whether it runs or not."""

    name: str
    """Its name for the manager."""
    source: str
    """Where it was seen."""
    options: Options | None = None
    """The options of its command; None if the command does not show them (a script, a variable)."""
    extra: tuple[str, ...] = ()
    """The options that an inventory keeps unchanged."""
    directory: str = ""
    """Its working directory."""
    python: str = ""
    """Its Python."""
    user: str = ""
    """The user that runs it."""
    env_files: tuple[str, ...] = ()
    """The environment files that it reads."""
    sets: tuple[str, ...] = ()
    """The names of variables that Compose sets in addition."""
    wanted: bool = True
    """Whether it should run."""
    pids: tuple[int, ...] = ()
    """Its processes."""
    container: SeenContainer | None = None
    """The container that it is."""
    supervisord: Supervisord | None = None
    """The supervisord that it is a program of."""


class HostSurvey(Struct, frozen=True):
    """A host without an inventory, as it was seen."""

    name: str
    """The host."""
    variables: Mapping[str, str]
    """How it is reached."""
    hostname: str
    """The name that its workers use for `%h`."""
    census: Census
    """Its Celery processes."""
    asking: str = "root"
    """The user that asked there."""
    manager: str = "none"
    """What runs the application's workers: systemd, supervisor, docker or none."""
    mains: tuple[CeleryProcess, ...] = ()
    """The processes of the application."""
    others: tuple[CeleryProcess, ...] = ()
    """The processes that another manager runs."""
    elsewhere: tuple[CeleryProcess, ...] = ()
    """The processes of an installation in another place."""
    details: Mapping[int, SeenProcess] = field(default_factory=dict)
    """More about processes, by pid."""
    services: tuple[SeenService, ...] = ()
    """The services of the manager."""
    supervisord: Supervisord | None = None
    """The supervisord that is the manager."""
    supervisords: Mapping[int, Supervisord] = field(default_factory=dict)
    """All supervisords, by pid."""
    socket: str = ""
    """The socket of Docker's engine."""
    why_unknown: str = ""
    """Why the engine cannot be asked."""
    project: str = ""
    """The Compose project; "" if the containers are found by their names."""
    inside: SeenService | None = None
    """The container that the operator named."""


class AppReport(Discreet, frozen=True):
    """What the application reports, with the URLs of its broker and results in clear."""

    HIDDEN = ("broker", "backend")

    said: Application | None = None
    """What it says about itself."""
    broker: str = ""
    """The URL of its broker."""
    backend: str = ""
    """The URL of its result backend."""
    variables: tuple[str, ...] = ()
    """The variables of its environment that contain the broker's URL."""
    master: str = ""
    """The name of the master that the Sentinels watch."""
    error: str = ""
    """Why it cannot be loaded; "" if it was."""

"""What is seen of a fleet that no inventory describes: its processes, and what runs them."""

from collections.abc import Mapping

from msgspec import Struct, field

from runbooks.core.application import Application
from runbooks.core.census import CeleryProcess, Census, Options
from runbooks.core.secret_records import Discreet


class SeenProcess(Struct, frozen=True):
    """What `/proc` tells of a worker or beat beside the census; paths in a container are those of
    the container.

    `python` is the Python that runs it, and has the application; "" where that is not seen. `logs`
    are the files that it prints into, and that of `-f`. `extra` are those of its options that an
    inventory keeps as they are.
    """

    directory: str = ""
    python: str = ""
    logs: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


class Supervisord(Struct, frozen=True):
    """The supervisord of a host: its configuration, its `supervisorctl`, and why its programs are
    not known.
    """

    conf: str = ""
    ctl: str = ""
    untold: str = ""


class SeenContainer(Struct, frozen=True):
    """A container: its id, name and image, and the Compose `project` that it is of, "" for none.

    `folder` is that of the project, `files` are the project's Compose files, as Compose has them in
    its labels. `addresses` are its own in each network, `aliases` what others call it there.
    `published` are ports of this machine, by those of the container.
    """

    id: str
    name: str
    image: str = ""
    project: str = ""
    folder: str = ""
    files: tuple[str, ...] = ()
    addresses: Mapping[str, str] = {}
    aliases: tuple[str, ...] = ()
    published: Mapping[int, int] = {}


class SeenService(Struct, frozen=True):
    """A unit, program or container that starts a worker or beat, whether it runs or not.

    `name` is what its manager calls it. `options` are those of its command, None where that does
    not tell (a script, a variable). `source` says where it was seen. `env_files` are those that it
    reads, `sets` the names of variables that Compose sets beside them. `wanted`: it is to run. A
    program is one of a `supervisord`.
    """

    name: str
    source: str
    options: Options | None = None
    extra: tuple[str, ...] = ()
    directory: str = ""
    python: str = ""
    user: str = ""
    env_files: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    wanted: bool = True
    pids: tuple[int, ...] = ()
    container: SeenContainer | None = None
    supervisord: Supervisord | None = None


class HostSurvey(Struct, frozen=True):
    """A host as it was seen; `hostname` is what its workers take for `%h`, `asking` who asks there.

    `variables` say how it is reached. `services` are those of the `manager` that runs the
    application's workers there: systemd, supervisor, docker or none; `supervisord` is that manager,
    one of all `supervisords` by their pids. `socket` is that of Docker's engine, `untold` why that
    cannot be asked, `project` the Compose project, "" where the containers are known by their
    names; `inside` is the container that the operator names. `mains` are the processes that are the
    application's, `others` those that another manager runs, `elsewhere` those of an installation in
    another place.
    """

    name: str
    variables: Mapping[str, str]
    hostname: str
    census: Census
    asking: str = "root"
    manager: str = "none"
    mains: tuple[CeleryProcess, ...] = ()
    others: tuple[CeleryProcess, ...] = ()
    elsewhere: tuple[CeleryProcess, ...] = ()
    details: Mapping[int, SeenProcess] = field(default_factory=dict)
    services: tuple[SeenService, ...] = ()
    supervisord: Supervisord | None = None
    supervisords: Mapping[int, Supervisord] = field(default_factory=dict)
    socket: str = ""
    untold: str = ""
    project: str = ""
    inside: SeenService | None = None


class Told(Discreet, frozen=True):
    """What the application says, with the URLs of its broker and results in clear.

    `variables` are those of its environment whose value is the broker's URL. `master` is the name
    behind Sentinels. `error` is why it cannot be loaded, "" where it was.
    """

    HIDDEN = ("broker", "backend")

    said: Application | None = None
    broker: str = ""
    backend: str = ""
    variables: tuple[str, ...] = ()
    master: str = ""
    error: str = ""

"""A container of a service, as its engine reports it."""

from pathlib import PurePosixPath

from msgspec import Struct

_SHELLS = ("sh", "bash", "dash", "ash", "zsh", "ksh", "busybox")


class Container(Struct, frozen=True):
    """A container of a service."""

    id: str
    """The full id."""
    name: str
    """The name as Docker shows it."""
    status: str
    """The status in Docker's words: `running`, `exited`, …"""
    made_at: float
    """When it was created, and so read its environment files."""
    hostname: str
    """Its host name."""
    pid: int | None = None
    """Its first process, in the host's numbering; None if it does not run."""
    program: str = ""
    """The path of what that process runs; "" if it may not be seen."""
    command: tuple[str, ...] = ()
    """The command that the container was created with."""
    started_at: float | None = None
    """When it was last started; None: never."""
    restarts: int = 0
    """How often its policy has restarted it since an operator last started it."""
    exit_code: int = 0
    """How it last ended."""
    out_of_memory: bool = False
    """Whether it last ended because it ran out of memory."""
    health: str = ""
    """The state of its health check; "" without one."""
    health_said: str = ""
    """The last output of a health check that failed."""
    stop_signal: str = "SIGTERM"
    """The signal that `docker stop` sends."""
    grace_s: float = 10.0
    """After so long `docker stop` kills it."""
    number: str = ""
    """Which of the service's containers it is; "" without Compose."""

    @property
    def loops(self) -> bool:
        """Whether it starts and ends again and again, or did so until its policy gave up.

        Its policy may also have restarted it before an operator stopped it, so that it ended well.
        """
        gave_up = self.restarts > 0 and self.pid is None and self.exit_code != 0
        return self.status == "restarting" or gave_up

    @property
    def shell(self) -> str:
        """The shell that is its first process and so ignores TERM; "" for any other program."""
        name = PurePosixPath(self.program).name
        return name if name in _SHELLS else ""

    @property
    def signals_all(self) -> str:
        """The init that sends a signal on to all processes, not only to the first; "" if not known.

        **Source:** tini(1), `-g`; dumb-init, `--single-child`.
        """
        if not self.command:
            return ""
        name = PurePosixPath(self.command[0]).name
        options = self._own_options()
        if name in ("tini", "docker-init") and any("g" in one for one in options):
            return f"{name} -g"
        if name == "dumb-init" and not {"--single-child", "-c"} & set(options):
            return name
        return ""

    def _own_options(self) -> list[str]:
        """The options of its first program: all words before the first that is not an option."""
        options: list[str] = []
        for word in self.command[1:]:
            if word == "--" or not word.startswith("-"):
                break
            options.append(word)
        return options

    @property
    def summary(self) -> str:
        """Its state in the words of `docker ps`."""
        text = f"{self.name}: {self.status}"
        if self.status == "running":
            if self.health not in ("", "none"):
                text += f" ({self.health})"
            return text
        if self.status in ("exited", "restarting", "dead"):
            text += f", exit code {self.exit_code}"
        if self.out_of_memory:
            text += ", it ran out of memory"
        if self.restarts:
            text += f", restarted {self.restarts} times by its policy"
        return text

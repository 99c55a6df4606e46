"""A container of a service, as its engine tells."""

from pathlib import PurePosixPath

from msgspec import Struct

_SHELLS = ("sh", "bash", "dash", "ash", "zsh", "ksh", "busybox")


class Container(Struct, frozen=True):
    """A container: `id` in full, `name` as Docker shows it, `status` as Docker calls it (`running`,
    `exited`, …).

    `pid` is its first process as the host knows it, None where it does not run, and `program` what
    that process runs: the path, "" where it may not be seen. `command` is what the container was
    told to run. `made_at` is when it was created, and so read its environment files; `started_at`
    when it was last started, None for never. `restarts` are those by its policy since somebody last
    started it. `exit_code` and `out_of_memory` are those of its last end. `health` is "" without a
    health check, and `health_said` is the last output of one that failed. `stop_signal` and
    `grace_s` are how `docker stop` ends it. `hostname` is its own. `number` is which of the
    service's containers it is, "" without Compose.
    """

    id: str
    name: str
    status: str
    made_at: float
    hostname: str
    pid: int | None = None
    program: str = ""
    command: tuple[str, ...] = ()
    started_at: float | None = None
    restarts: int = 0
    exit_code: int = 0
    out_of_memory: bool = False
    health: str = ""
    health_said: str = ""
    stop_signal: str = "SIGTERM"
    grace_s: float = 10.0
    number: str = ""

    @property
    def loops(self) -> bool:
        """Whether it starts and ends again and again."""
        return self.status == "restarting" or (self.restarts > 0 and self.pid is None)

    @property
    def shell(self) -> str:
        """The shell that is its first process, which ignores TERM; "" where that is something else."""
        name = PurePosixPath(self.program).name
        return name if name in _SHELLS else ""

    @property
    def signals_all(self) -> str:
        """The init that passes a signal on to all processes, and not to the first alone; "" where
        none is known.

        **Source:** tini(1), `-g`; dumb-init, `--single-child`.
        """
        if not self.command:
            return ""
        name, options = PurePosixPath(self.command[0]).name, self._own_options()
        if name in ("tini", "docker-init") and any(
            one.startswith("-") and "g" in one for one in options
        ):
            return f"{name} -g"
        return name if name == "dumb-init" and not {"--single-child", "-c"} & set(options) else ""

    def _own_options(self) -> list[str]:
        """Those of its first program, which end at the first word that is none."""
        options: list[str] = []
        for word in self.command[1:]:
            if word == "--" or not word.startswith("-"):
                break
            options.append(word)
        return options

    @property
    def told(self) -> str:
        """Its state in words, as `docker ps` has it."""
        if self.status == "running":
            return f"{self.name}: running" + (
                f" ({self.health})" if self.health not in ("", "none") else ""
            )
        text = f"{self.name}: {self.status}"
        if self.status in ("exited", "restarting", "dead"):
            text += f", exit code {self.exit_code}"
        text += ", it ran out of memory" if self.out_of_memory else ""
        return text + (f", restarted {self.restarts} times by its policy" if self.restarts else "")

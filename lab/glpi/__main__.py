"""Run the stand-in: `python -m lab.glpi --port 0 --port-file FILE`, tokens in GLPI_APP_TOKEN and
GLPI_USER_TOKEN.
"""

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from lab.glpi.api import Api
from lab.glpi.server import GlpiServer


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    api = Api(_token("GLPI_APP_TOKEN"), _token("GLPI_USER_TOKEN"))
    with GlpiServer(arguments.port, api, arguments.address) as server:
        if arguments.port_file:
            _write_atomically(arguments.port_file, f"{server.server_port}\n")
        server.serve_forever()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lab.glpi", description="A stand-in for GLPI's REST API."
    )
    parser.add_argument("--address", default="127.0.0.1", help="where to listen (127.0.0.1)")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes any free port")
    parser.add_argument(
        "--port-file", type=Path, help="the port is written here once the server listens"
    )
    return parser


def _token(name: str) -> str:
    token = os.environ.get(name)
    if not token:
        sys.exit(f"lab.glpi: set {name} to the token that clients will send")
    return token


def _write_atomically(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(text)
    unfinished.replace(path)


def _leave(_signum: int, _frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    main()

"""TCP ports: is one free, and if not, who has it."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from scripts.setup.trouble import Trouble

LISTENING = "0A"  # the state in /proc/net/tcp, see proc(5)


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As a server does: connections of a server that has just ended do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def next_free(first: int, taken: Callable[[int], bool] = lambda port: not is_free(port)) -> int:
    for port in range(first, 65536):
        if not taken(port):
            return port
    raise Trouble(f"No port from {first} on is free.")


def require_free(port: int, host: str = "127.0.0.1") -> None:
    """Raises Trouble, saying who has the port (where /proc tells) and what to do."""
    if is_free(port, host):
        return
    owner = owner_of(port)
    other = next_free(port + 1 if port < 65535 else 4000)
    raise Trouble(
        f"Port {port} on {host} is taken{f' by {owner}' if owner else ''}.\n"
        f"Stop that, or choose another port:  scripts/quickstart --port {other}"
    )


def owner_of(port: int, proc: Path = Path("/proc")) -> str:
    """Command and pid of the process that listens on the port; empty where /proc does not tell."""
    sockets = {f"socket:[{inode}]" for inode in listening_inodes(port, proc)}
    for process in proc.glob("[0-9]*") if sockets else ():
        with contextlib.suppress(OSError):  # gone meanwhile, or another person's
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()) in sockets:
                        return f"{command_of(process)} (pid {process.name})"
    return ""


def listening_inodes(port: int, proc: Path) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (proc / "net" / table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def command_of(process: Path) -> str:
    words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    return " ".join(words).strip()[:80] or "a process"

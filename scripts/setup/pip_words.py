"""What pip says, turned into what a person wants to know: how far it is, and why it failed."""

import re
from collections.abc import Sequence

_EVENTS = (
    (re.compile(r"(?:Collecting|Processing) (?:\S*/)?([A-Za-z0-9._]+(?:-[A-Za-z_]+)*)"), "looking up"),
    (re.compile(r"Downloading (?:\S*/)?(\S+?)-\d\S*\.whl (\([\d.]+ [kMG]B\))"), "downloading"),
    (re.compile(r"Installing collected packages"), "unpacking"),
    (re.compile(r"Retrying \("), "waiting for the network"),
)

_NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|name resolution|Name or service not known"
    r"|Connection (?:refused|reset)|Connection broken|Network is unreachable"
    r"|ProxyError|SSLError|Max retries|timed out|IncompleteRead",
    re.IGNORECASE,
)
_NOT_FOUND = re.compile(r"No matching distribution found for (\S+)")


def pip_progress(said: str) -> str:
    """The last thing that happened, e.g. ``downloading torch (191.2 MB)``; empty before the first."""
    for line in reversed(said.splitlines()):
        for pattern, words in _EVENTS:
            if found := pattern.search(line):
                return " ".join([words, *found.groups()])
    return ""


def pip_trouble(said: str) -> str:
    """Why pip failed and what to do, in one or two sentences."""
    if "No space left on device" in said:
        return "The disk is full. Make room and run this again: what is already there is kept."
    missing = _NOT_FOUND.search(said)
    if _NETWORK.search(said) and (missing is None or "(from versions: none)" in said):
        return (
            "pip could not reach the package index. Look at the network, the proxy and pip's own settings "
            "(pip config list), and run this again: it goes on where it stopped."
        )
    if missing and missing[1].endswith("+cpu"):
        return (
            f"{missing[1]} is not on the package index that pip asks: PyTorch keeps its builds for CPUs on an index of "
            "its own.\nSet PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index (pytorch.org names it on its page on "
            "installing) and run this again."
        )
    if missing:
        return (
            f"The package index that pip asks has no {missing[1]} for this Python and machine. "
            "Look at pip's settings (pip config list), or try Python 3.11."
        )
    if "Permission denied" in said:
        return "pip may not write where it has to. Run this as the person whose folder this is."
    return "pip failed."


def last_lines(said: str, count: int = 4) -> Sequence[str]:
    """The lines that tell most: pip's errors, or else its last words."""
    lines = [line.rstrip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.lstrip().lower().startswith("error")]
    return (errors or lines)[-count:]

"""The command lines of scripts/quickstart and scripts/test."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

_ABOUT = """\
From a fresh checkout to a model that answers: makes .venv, installs iChat and the engine that this machine can run,
prepares a small demo model, writes config.yaml if there is none, and starts everything. What is there already is kept,
so the second start takes no longer than the engine does."""

_ENDS = """\
Ctrl-C stops everything; requests that are under way are finished first, and a second Ctrl-C does not wait for them.

Environment: ICHAT_CACHE is where the demo model is kept (default: ~/.cache/ichat). pip's own variables count as ever,
such as PIP_INDEX_URL, PIP_EXTRA_INDEX_URL and HTTPS_PROXY. Every key of config.yaml may be given as
ICHAT_SECTION__KEY."""


@dataclass(frozen=True, slots=True)
class QuickstartArguments:
    port: int | None
    model: str | None
    install_only: bool


def parse_quickstart_arguments(argv: Sequence[str]) -> QuickstartArguments:
    parser = argparse.ArgumentParser(
        prog="scripts/quickstart",
        description=_ABOUT,
        epilog=_ENDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=port, help="where the gateway listens (default: that of config.yaml, else 4000)")
    parser.add_argument(
        "--model", metavar="PATH_OR_ID", help="a model folder, or a hub id such as org/model, instead of the demo model"
    )
    parser.add_argument("--install-only", action="store_true", help="do everything but start")
    given = parser.parse_args(argv)
    return QuickstartArguments(given.port, given.model, given.install_only)


def port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is no port: give a number from 1 to 65535")
    return int(text)

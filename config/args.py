"""The worker's command line: iChat's own arguments, and all the rest for the engine, untouched."""

import argparse
import ipaddress
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from utils.common import address_facing, is_loopback
from utils.errors import ConfigError

NAME = r"^[^\s\x00-\x1f]+$"
WORKER_ID = r"^[A-Za-z0-9._:@+-]+$"
HOST = r"^[A-Za-z0-9._:-]+$"
"""What names, ids and hosts may hold: the gateway takes no others."""
MEDIA_HOST = r"[a-z0-9_-]+(\.[a-z0-9_-]+)*"
TOKEN_VARIABLE = "ICHAT_WORKER_TOKEN"  # noqa: S105 - the variable's name, not a token
"""The worker token comes from the environment alone: an argument would be seen in ``ps``."""


RESTARTS_VARIABLE = "ICHAT_WORKER_RESTARTS"
"""How many times the gateway has started this worker again."""


@dataclass(frozen=True, slots=True)
class WorkerArguments:
    """What iChat itself wants to know of a worker. Times are in seconds."""

    model: str
    model_name: str = ""
    aliases: tuple[str, ...] = ()
    backend: str = "vllm"
    host: str = ""
    port: int = 8001
    gateway_address: str = ""
    advertise_host: str = ""
    worker_id: str = ""
    heartbeat_interval: float = 30.0
    log_streaming: bool = True
    drain_timeout: float = 30.0
    progress_timeout: float = 300.0
    warmup: bool = True
    warmup_prompts: tuple[str, ...] = ("Hello",)
    max_body_mb: float = 32.0
    allowed_media_domains: tuple[str, ...] = ()
    allowed_local_media_path: str = ""
    token: str = ""
    restarts: int = 0
    engine_argv: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.model_name, *self.aliases)

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mb * 1024 * 1024)


DEFAULTS = WorkerArguments(model="")


def parse_worker_arguments(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> WorkerArguments:
    """iChat's own arguments parsed, and filled where they follow from others; the rest in ``engine_argv``, in order.

    Raises ConfigError, and SystemExit after ``--help``.
    """
    parser = create_parser()
    own, engine = split_argv(parser, argv)
    given = parser.parse_args(own)
    if not given.model:
        raise ConfigError("--model is missing: name a model folder, or a hub id such as org/model")
    names = given.model_name or [Path(given.model).name or given.model]
    gateway = normalize_gateway_address(given.gateway_address)
    host, advertised = addresses(given.host, given.advertise_host, gateway)
    worker_id = given.worker_id or default_worker_id(names[0], given.port)
    token = environ.get(TOKEN_VARIABLE, "").strip()
    for name in names:
        require("--model-name", name, NAME, "a name without spaces")
    require("--worker-id", worker_id, WORKER_ID, "letters, digits and . _ : @ + -")
    require("--advertise-host", advertised, HOST, "a host name, or an address without brackets")
    if token and not is_header_word(token):
        raise ConfigError(f"{TOKEN_VARIABLE} must be one word of ASCII letters, digits and signs")
    return WorkerArguments(
        model=given.model,
        model_name=names[0],
        aliases=tuple(names[1:]),
        backend=given.backend,
        host=host,
        port=given.port,
        gateway_address=gateway,
        advertise_host=advertised,
        worker_id=worker_id,
        heartbeat_interval=given.heartbeat_interval,
        log_streaming=given.log_streaming,
        drain_timeout=given.drain_timeout,
        progress_timeout=given.progress_timeout,
        warmup=given.warmup,
        warmup_prompts=tuple(given.warmup_prompts),
        max_body_mb=given.max_body_mb,
        allowed_media_domains=tuple(map(media_host, given.allowed_media_domains)),
        allowed_local_media_path=media_folder(given.allowed_local_media_path),
        token=token,
        restarts=count_restarts(environ),
        engine_argv=tuple(engine),
    )


def count_restarts(environ: Mapping[str, str]) -> int:
    text = environ.get(RESTARTS_VARIABLE, "")
    return int(text) if text.isascii() and text.isdigit() else 0


def require(option: str, value: str, pattern: str, what: str) -> None:
    """Raises ConfigError for a value that a gateway would refuse."""
    if not re.fullmatch(pattern, value) or len(value) > 256:
        raise ConfigError(f"{option} {value!r} will not do: give {what}, at most 256 characters")


def is_header_word(text: str) -> bool:
    """Whether a token can be sent as ``Authorization: Bearer TOKEN``."""
    return bool(text) and all("!" <= char <= "~" for char in text)


class WorkerParser(argparse.ArgumentParser):
    """argparse, but a wrong argument is a ConfigError instead of an exit."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see serve.py --help)")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but only where there is one to show and the help does not say it itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, "") or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def create_parser() -> WorkerParser:
    parser = WorkerParser(
        prog="serve.py",
        description="Run one model as an iChat worker: an engine, with doors that a gateway can watch.",
        epilog="Every other argument goes to the engine as it is: --max-model-len 4096 --enforce-eager ... "
        "--help=vllm and --help=sglang list what the engines take.",
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    model = parser.add_argument_group("model")
    model.add_argument("--model", "--model-path", metavar="PATH", default="", help="model folder or hub id (required)")
    model.add_argument(
        "--model-name", "--served-model-name", "-n", dest="model_name", nargs="+", metavar="NAME",
        help="name that clients ask for; more names are aliases of it (default: the last part of --model)",
    )  # fmt: skip
    model.add_argument("--backend", "-be", default=DEFAULTS.backend, metavar="NAME", help="engine: vllm, sglang, fake")
    door = parser.add_argument_group("door")
    door.add_argument("--host", default="", help="address to listen on (default: 127.0.0.1, or all for a far gateway)")
    door.add_argument("--port", type=port, default=DEFAULTS.port, help="port to listen on; 0 takes a free one")
    door.add_argument("--drain-timeout", type=seconds, default=DEFAULTS.drain_timeout, metavar="S",
                      help="how long a stopping worker finishes what is in flight")  # fmt: skip
    door.add_argument("--progress-timeout", type=seconds, default=DEFAULTS.progress_timeout, metavar="S",
                      help="requests running but no token for this long: the engine hangs")  # fmt: skip
    door.add_argument("--warmup", action=argparse.BooleanOptionalAction, default=DEFAULTS.warmup,
                      help="send small requests through the engine before saying ready")  # fmt: skip
    door.add_argument("--warmup-prompts", nargs="+", default=DEFAULTS.warmup_prompts, metavar="TEXT",
                      help="what the small requests ask (default: Hello)")  # fmt: skip
    door.add_argument("--max-body-mb", type=megabytes, default=DEFAULTS.max_body_mb, metavar="MB",
                      help="larger requests are refused with 413")  # fmt: skip
    media = parser.add_argument_group("media", "Images, audio and video in requests. data: URIs are always taken.")
    media.add_argument("--allowed-media-domains", nargs="*", default=DEFAULTS.allowed_media_domains, metavar="HOST",
                       help="hosts that media may be fetched from (default: none)")  # fmt: skip
    media.add_argument("--allowed-local-media-path", default="", metavar="DIR",
                       help="folder that media files of this machine may be read from (default: none)")  # fmt: skip
    gateway = parser.add_argument_group("gateway")
    gateway.add_argument("--gateway-address", "-ga", default="", metavar="URL", help="e.g. http://HOST:4000")
    gateway.add_argument("--advertise-host", default="", metavar="HOST",
                         help="address under which the gateway reaches this worker (default: found out)")  # fmt: skip
    gateway.add_argument("--worker-id", default="", metavar="ID", help="default: made of model, host name and port")
    gateway.add_argument("--heartbeat-interval", "--hi", type=interval, default=DEFAULTS.heartbeat_interval,
                         metavar="S", help="seconds between two heartbeats")  # fmt: skip
    gateway.add_argument("--log-streaming", "--ls", type=truth, nargs="?", const=True, metavar="BOOL",
                         default=DEFAULTS.log_streaming, help="serve this worker's log to the gateway")  # fmt: skip
    return parser


def split_argv(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """argv as (iChat's own, the engine's), each in its order.

    argparse's own ``parse_known_args`` reorders what it does not know; an engine's ``--flag`` must keep its values.
    """
    options = {option: action for action in parser._actions for option in action.option_strings}
    own: list[str] = []
    engine: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, has_value, _ = word.partition("=")
        action = options.get(canonical(name))
        if action is None:
            engine.append(word)
            # The values of an engine's option stay with it, even where they look like one of our options' values.
            continue
        own.append(canonical(name) + word[len(name) :])
        if not has_value:
            own += [words.pop(0) for _ in range(count_values(action, words))]
    return own, engine


def canonical(name: str) -> str:
    """``--model_name`` is ``--model-name``: the unified names are snake_case in YAML."""
    return name.replace("_", "-") if name.startswith("--") else name


def count_values(action: argparse.Action, words: Sequence[str]) -> int:
    """How many of the next words belong to an option of ours."""
    if action.nargs == 0:
        return 0
    following = next((i for i, word in enumerate(words) if word.startswith("-") and word != "-"), len(words))
    if action.nargs in ("+", "*"):
        return following
    if action.nargs == "?":
        return min(following, 1)
    return min(len(words), 1)


def addresses(host: str, advertised: str, gateway: str) -> tuple[str, str]:
    """(address to listen on, address under which the gateway finds us)."""
    if not gateway:
        return host or "127.0.0.1", advertised or host or "127.0.0.1"
    url = urlsplit(gateway)
    try:
        facing = address_facing(url.hostname or "", url.port or 80)
    except (OSError, UnicodeError) as error:
        if not advertised:
            raise ConfigError(
                f"--gateway-address {gateway}: {error}: correct the host name, or give --advertise-host"
            ) from error
        facing = advertised
    host = host or ("127.0.0.1" if is_loopback(facing) else "0.0.0.0")  # noqa: S104 - the gateway is elsewhere
    unspecific = host in ("0.0.0.0", "::")  # noqa: S104
    return host, advertised or (facing if unspecific else host)


def normalize_gateway_address(text: str) -> str:
    """``HOST:4000`` and ``http://HOST:4000/`` are both ``http://HOST:4000``. Raises ConfigError."""
    if not text:
        return ""
    full = text if "://" in text else f"http://{text}"
    try:
        url = urlsplit(full)
        valid = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"--gateway-address {text!r} is no address: write it like http://HOST:4000")
    return full.rstrip("/")


def media_host(text: str) -> str:
    """A host as addresses are compared with it: in lower case, IPv6 without brackets. Raises ConfigError."""
    host = text.lower().removeprefix("[").removesuffix("]")
    try:
        is_host = ipaddress.IPv6Address(host) is not None if ":" in host else bool(re.fullmatch(MEDIA_HOST, host))
    except ValueError:
        is_host = False
    if not is_host:
        raise ConfigError(
            f"--allowed-media-domains {text!r} is no host name: write it like images.example.com, "
            "without http://, port or *"
        )
    return host


def media_folder(text: str) -> str:
    """The folder with its links resolved. Raises ConfigError where there is none."""
    if text and not Path(text).is_dir():
        raise ConfigError(f"--allowed-local-media-path {text!r}: there is no such folder")
    return str(Path(text).resolve()) if text else ""


def default_worker_id(model_name: str, port_number: int) -> str:
    """The same after a restart, so that the registry knows the worker again. A free port (0) has no such thing."""
    safe = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in model_name)
    suffix = str(port_number) if port_number else f"pid{os.getpid()}"
    return f"{safe}-{socket.gethostname()}-{suffix}"


def own_options() -> list[str]:
    """iChat's own options, for whoever looks for what a user may have meant."""
    return [option for action in create_parser()._actions for option in action.option_strings]


def port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 65535")
    return number


def seconds(text: str) -> float:
    number = float(text)
    if not 0 < number <= 86400:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds between 0 and 86400")
    return number


def megabytes(text: str) -> float:
    number = float(text)
    if not 0 < number <= 4096:
        raise argparse.ArgumentTypeError(f"{text} is not a number of megabytes between 0 and 4096")
    return number


def interval(text: str) -> float:
    number = seconds(text)
    if number < 0.1:
        raise argparse.ArgumentTypeError(f"{text} is shorter than 0.1 seconds")
    return number


def truth(text: str) -> bool:
    words: dict[str, Any] = {"true": True, "1": True, "yes": True, "on": True,
                             "false": False, "0": False, "no": False, "off": False}  # fmt: skip
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return bool(words[text.lower()])

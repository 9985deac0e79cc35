"""No request makes an engine fetch an address, or read a file, that the worker's operator has not allowed.

Where vLLM 0.32 and SGLang 0.5.23 take media from, on whatever route and however deep:

====================================================  ===============================================================
request                                               keys
====================================================  ===============================================================
chat, responses, tokenize, score, rerank, embeddings  ``image_url audio_url video_url``: a string, or ``{"url": ...}``
Anthropic's messages, tool results too                ``source: {"url": ...}``
Cohere's embed, decisions, Ollama's routes            ``images audio videos``: strings, or ``{"url": ...}``
SGLang's embeddings and classify                      ``image video``
SGLang's generate, encode, vertex_generate            ``image_data audio_data video_data``, in lists of any depth
files of OpenAI's API, which neither engine loads     ``file_url file_data``
====================================================  ===============================================================

vLLM's loader takes ``data:``, ``http(s)://`` and ``file://``. SGLang's takes these, absolute and relative paths, and
base64 alone; behind the path of a video stands ffmpeg, with protocols of its own (``concat:``, ``tcp:`` ...), and with
playlists, which name other files. So what is not known to be harmless is refused.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from utils.errors import BadRequest

MEDIA_KEYS: Final = frozenset(
    {
        "image_url", "audio_url", "video_url", "image_data", "audio_data", "video_data", "image", "audio", "video",
        "images", "audios", "videos", "input_audio", "file_url", "file_data",
    }
)  # fmt: skip
"""``source`` is one too where it holds an object: as a text it is what a search result cites."""
TELLTALES: Final = (b'"image', b'"audio', b'"video', b'"input_audio', b'"file_', b'"source"', b"\\u00", b"\0")
"""A body without any of these holds no such key: keys may be written with escapes, and bodies in UTF-16 or UTF-32."""
NEVER_LOADED: Final = frozenset(
    {
        ("tools",),
        ("functions",),
        ("response_format",),
        ("metadata",),
        ("messages", 0, "tool_calls"),
        ("messages", 0, "content", 0, "input"),
    }
)
"""Schemas, and arguments of the user's own tools, may well speak of images. 0 stands for any index."""
NEVER_LOADED_NAMES: Final = frozenset(steps[-1] for steps in NEVER_LOADED)
MAX_VALUES: Final = 250_000
"""Lists, objects and their members in a body with media; looking through more would hold up everybody else."""
MAX_MEDIA: Final = 1000
"""Media in one request: each file among them is looked for on the disk."""

ADDRESS: Final = re.compile(
    r"https?://(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:[/?#][^\s\\\x00-\x1f\x7f]*)?"
)
"""Narrower than any parser that may read it later: no user name, no backslash, no space, no capitals in ``http``."""
FILE: Final = re.compile(r"file://(?P<path>/[^\s\\?#\x00-\x1f\x7f]*)")
BASE64: Final = re.compile(r"[A-Za-z0-9+/]+={0,2}")
LONGEST_PATH: Final = 4096
"""Linux takes no longer path (PATH_MAX): a longer word names no file."""
LISTS: Final = re.compile(r"mpegurl|m3u|dash|sdp|concat|xml")
"""In the type of a data: URI, which may become the name of a file: what makes ffmpeg open other files."""
LONGEST_TYPE: Final = 256
SHOWN: Final = 80

Trail = tuple["Trail", str | int] | None
"""Where in a body something stands, from within. Linked, so that a deep body costs no more than a flat one."""


@dataclass(frozen=True, slots=True)
class MediaPolicy:
    """What may be loaded besides data: URIs: from ``hosts`` (lower case), redirects included, and below ``folder``."""

    hosts: frozenset[str] = frozenset()
    folder: str = ""  # resolved; "": none


class Pairs(tuple[tuple[str, Any], ...]):
    """A JSON object with all of its keys: which of two that are alike counts, depends on the parser."""

    __slots__ = ()


OBJECTS: Final = (dict, Pairs)
CONTAINERS: Final = (*OBJECTS, list)


def check_bytes(body: bytes, policy: MediaPolicy) -> None:
    """``check_media`` for a body that is parsed only where it may hold media. Raises BadRequest."""
    if not any(sign in body for sign in TELLTALES):
        return
    seen = 0

    def keep(pairs: list[tuple[str, Any]]) -> Pairs:
        nonlocal seen
        seen += 1 + len(pairs)
        if seen > MAX_VALUES:
            raise too_many_values()
        return Pairs(pairs)

    try:
        # As the engines' web framework reads it, but with every key of its objects.
        parsed = json.loads(body, object_pairs_hook=keep)
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    except ValueError as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from error
    check_media(parsed, policy)


def check_media(body: Any, policy: MediaPolicy) -> None:
    """Raises BadRequest for an address or a file in a parsed body that ``policy`` does not allow."""
    waiting: list[tuple[Trail, Any, bool]] = [(None, body, False)] if isinstance(body, CONTAINERS) else []
    seen = media = 0
    while waiting:
        trail, value, is_source = waiting.pop()
        if isinstance(value, str):
            media += 1
            if media > MAX_MEDIA:
                raise BadRequest(f"the body has more than {MAX_MEDIA} images, sounds or videos: send fewer at once")
            if why := refusal(value, policy):
                raise BadRequest(f"{named(trail)}: {why}", param=named(trail))
            continue
        found = list(members(trail, value, is_source))
        seen += len(found)
        if seen > MAX_VALUES:
            raise too_many_values()
        waiting += found


def too_many_values() -> BadRequest:
    return BadRequest(f"the body has media among more than {MAX_VALUES} values: send fewer at once")


def members(trail: Trail, container: Any, is_source: bool) -> Iterator[tuple[Trail, Any, bool]]:
    """What in a list or an object is to be looked at: where, what, and whether it is media."""
    if isinstance(container, list):
        wanted = (str, *CONTAINERS) if is_source else CONTAINERS
        yield from (((trail, i), item, is_source) for i, item in enumerate(container) if isinstance(item, wanted))
        return
    for key, value in container.items() if isinstance(container, dict) else container:
        here = (trail, key)
        is_media = key in MEDIA_KEYS or (is_source and key == "url") or (key == "source" and isinstance(value, OBJECTS))
        wanted = (str, *CONTAINERS) if is_media else CONTAINERS
        if isinstance(value, wanted) and not is_never_loaded(here):
            yield here, value, is_media


def is_never_loaded(trail: Trail) -> bool:
    if trail is None or trail[1] not in NEVER_LOADED_NAMES:
        return False
    return tuple(0 if isinstance(step, int) else step for step in steps(trail)) in NEVER_LOADED


def steps(trail: Trail) -> list[str | int]:
    found: list[str | int] = []
    while trail is not None:
        trail, step = trail
        found.append(step)
    return found[::-1]


def named(trail: Trail) -> str:
    """``messages[0].content[1].image_url``"""
    words = (f"[{step}]" if isinstance(step, int) else f".{step[:SHOWN]}" for step in steps(trail)[:SHOWN])
    return "".join(words).removeprefix(".")


def refusal(source: str, policy: MediaPolicy) -> str:
    """Why this is not loaded; "" where nothing speaks against it."""
    scheme = source[:8].lower()
    if source.startswith("data:"):
        return refusal_of_data(source)
    if scheme.startswith("data:"):
        return "write data: in small letters"  # not every loader knows it otherwise
    if scheme.startswith(("http:", "https:")):
        return refusal_of_address(source, policy.hosts)
    if scheme.startswith(("file:", "/")):
        return refusal_of_file(source, policy.folder)
    if not source or is_base64(source):
        return ""
    return f"{source[:SHOWN]!r} is no media: send data:image/png;base64,... with the type that fits"


def refusal_of_data(source: str) -> str:
    comma = source.find(",", 0, LONGEST_TYPE)
    if comma < 0:
        return "this data: URI has no comma: write data:image/png;base64,... with the type that fits"
    if LISTS.search(source[:comma].lower()):
        return f"{source[:comma][:SHOWN]} names no image, audio or video: send what stands behind it"
    return ""


def refusal_of_address(source: str, hosts: frozenset[str]) -> str:
    found = ADDRESS.fullmatch(source)
    if found is None:
        return f"{source[:SHOWN]!r} is no plain address: write http://HOST/PATH, without a user name or spaces"
    host = found["host"].strip("[]").lower()
    if host in hosts:
        return ""
    return (
        f"nothing is fetched from {host[:SHOWN]}: send the media as a data: URI, "
        "or start the worker with --allowed-media-domains and this host"
    )


def refusal_of_file(source: str, folder: str) -> str:
    found = FILE.fullmatch(source)
    path = found["path"] if found else source
    # Not every loader resolves the escapes of a file: URL, and none those of a path.
    paths = {path, unquote(path)} if found else {path}
    if all(is_below(each, folder) for each in paths):
        return ""
    return (
        "this file may not be read: send what is in it as a data: URI, "
        "or start the worker with --allowed-local-media-path and a folder that holds it"
    )


def is_below(path: str, folder: str) -> bool:
    """Whether the file is in ``folder`` when links and ``..`` are resolved. Looks at no file without a folder."""
    if not folder or not path.startswith("/") or "\0" in path or len(path) > LONGEST_PATH:
        return False
    return os.path.realpath(path).startswith(folder.rstrip("/") + "/")


def is_base64(source: str) -> bool:
    """SGLang takes base64 without more. A short word of such letters may also be the name of a file."""
    if len(source) > LONGEST_PATH:
        return BASE64.fullmatch(source[:LONGEST_PATH]) is not None
    return BASE64.fullmatch(source) is not None and not os.path.lexists(source)

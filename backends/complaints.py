"""What an engine complains about, in words that say what to do."""

import contextlib
import difflib
import re
from collections.abc import Collection, Iterator
from typing import Final

from backends.base import EngineDied
from config.args import own_options
from utils.errors import ConfigError, IChatError
from utils.logger import EventLogger

MAX_MESSAGE: Final = 400
NETWORK_ERRORS: Final = frozenset({"ConnectError", "ConnectTimeout", "ReadTimeout", "HfHubHTTPError"})

logger = EventLogger("backend")


def explain_nearest(option: str, options: Collection[str], engine: str) -> str:
    """What to say about an option that nobody has. ``options`` are the engine's own, with their dashes."""
    known = sorted({*options, *own_options()})
    nearest = difflib.get_close_matches(option.replace("_", "-"), known, n=3, cutoff=0.7)
    if not nearest:
        return f"{engine} has no argument {option}"
    return f"{engine} has no argument {option}: did you mean {' or '.join(nearest)}?"


def one_sentence(message: str) -> str:
    """An error's text on one line, without what pydantic adds for programmers."""
    text = re.sub(r"\d+ validation errors? for \w+\n", "", message)
    text = re.sub(r" \[type=.*?(?=\n\S|\n\s+For further|\Z)", "", text, flags=re.DOTALL)
    text = re.sub(r"\n\s+For further information visit \S+", "", text)
    text = re.sub(r"^(\w+)\n  (?=\S)", r"\1: ", text, flags=re.MULTILINE)
    text = re.sub(r"\b(Value error, |Assertion failed, |Error: )", "", text)
    text = " ".join(text.split())
    if len(text) <= MAX_MESSAGE:
        return text
    whole = text[:MAX_MESSAGE].rpartition(". ")[0]
    return f"{whole}." if whole else f"{text[: MAX_MESSAGE - 4]} ..."


@contextlib.contextmanager
def complaints_as_config_errors(engine_name: str) -> Iterator[None]:
    """What vLLM says about arguments, as one sentence. What other arguments would not help is an EngineDied."""
    try:
        yield
    except IChatError:
        raise
    except (ValueError, TypeError, KeyError, NotImplementedError, ImportError, OSError) as error:
        kind = EngineDied if is_network_trouble(error) else ConfigError
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        raise kind(f"{engine_name}: {one_sentence(text or type(error).__name__)}") from error
    except Exception as error:
        logger.error("engine_config_failed", exc_info=error)
        raise EngineDied(f"{engine_name}: {one_sentence(f'{type(error).__name__}: {error}')}") from error


def is_network_trouble(error: BaseException | None) -> bool:
    """Whether a download failed for a reason that may pass. The hub's client has its own errors: known by name."""
    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError) or type(error).__name__ in NETWORK_ERRORS:
            return True
        error = error.__cause__ or error.__context__
    return False

"""What all settings are made of."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from config.args import NAME

Seconds = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(min_length=1, max_length=256, pattern=NAME)]


def _check_collector(value: str) -> str:
    """Raises ValueError, which does not repeat what may hold a password."""
    try:
        url = urlsplit(value)
        is_whole = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_whole = False
    if not is_whole or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("must be a collector's whole address, such as http://127.0.0.1:4318/v1/traces")
    if url.username is not None or url.query or url.fragment:
        raise ValueError("must be an address alone: what a collector wants to be shown goes into the environment, "
                         "as OTEL_EXPORTER_OTLP_HEADERS=name=value")  # fmt: skip
    if url.path in ("", "/"):
        raise ValueError("lacks its path, which is mostly /v1/traces")
    return value


CollectorUrl = Annotated[str, AfterValidator(_check_collector)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

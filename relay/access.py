"""Who may do what: client keys, the admin key, the worker token. Keys are known by their hashes alone."""

import hashlib
import hmac
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from config.settings import ServerSettings
from utils.common import is_loopback
from utils.errors import Forbidden, Unauthorized

CHALLENGE = ((b"www-authenticate", b"Bearer"),)


class Access:
    """The rules of the three doors. Each ``require_*`` returns or raises Unauthorized or Forbidden."""

    def __init__(self, settings: ServerSettings) -> None:
        self._clients = {key.hash: key.name for key in settings.keys}
        self._admin_hash = settings.admin_key_hash
        token = settings.worker_token.get_secret_value() if settings.worker_token else ""
        self._worker_hash = hash_of(token) if token else None
        self.is_open = not self._clients

    def require_client(self, headers: Mapping[bytes, bytes]) -> str:
        """The name of the client's key; "" where the data plane is open."""
        if self.is_open:
            return ""
        key = presented_key(headers)
        # A lookup by SHA-256 tells an attacker nothing by its timing: he cannot steer the hash towards a known one.
        name = self._clients.get(hash_of(key)) if key else None
        if name is None:
            raise Unauthorized(
                "the API key is wrong or missing: send it as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers=CHALLENGE,
            )
        return name

    def require_admin(self, headers: Mapping[bytes, bytes], client_host: str) -> None:
        self._require(
            self._admin_hash,
            headers,
            client_host,
            "the admin routes are for this machine's own callers: set server_settings.admin_key_hash to open them",
        )

    def require_worker(self, headers: Mapping[bytes, bytes], client_host: str) -> None:
        self._require(
            self._worker_hash,
            headers,
            client_host,
            "heartbeats are taken from this machine only: set server_settings.worker_token, "
            "and ICHAT_WORKER_TOKEN for the worker",
        )

    def _require(self, expected: str | None, headers: Mapping[bytes, bytes], client_host: str, closed: str) -> None:
        if expected is None:
            if not is_loopback(client_host) or is_foreign_page(headers.get(b"origin", b"")):
                raise Forbidden(closed)
            return
        if not hmac.compare_digest(hash_of(presented_key(headers)), expected):
            raise Unauthorized("the key is wrong or missing: send it as 'Authorization: Bearer KEY'", headers=CHALLENGE)


def is_foreign_page(origin: bytes) -> bool:
    """Whether a browser asks for a page of another place. It may run on this machine; the page is not to be trusted."""
    if not origin:
        return False
    try:
        host = urlsplit(origin.decode("latin-1")).hostname or ""
        return host != "localhost" and not ip_address(host).is_loopback
    except ValueError:  # another name, or none
        return True


def hash_of(key: str) -> str:
    """A key as config.yaml holds it. Keys are long and random, so a plain hash is as good as a slow one."""
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def presented_key(headers: Mapping[bytes, bytes]) -> str:
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and key:
        return key.strip().decode("latin-1")
    return headers.get(b"x-api-key", b"").decode("latin-1")

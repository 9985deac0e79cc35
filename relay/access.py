"""Who may do what: client keys, the admin key, the worker token. Keys are known by their hashes alone."""

import hashlib
import hmac
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from config.admission import MOST_URGENT
from config.settings import ClientKey, ServerSettings
from utils.common import is_loopback
from utils.errors import Forbidden, Unauthorized

NOBODY: Final = ClientKey.model_construct(name="", hash="", weight=1.0, priority=MOST_URGENT, limits=None)
"""Who asks where there are no keys: all alike, and free to say what is urgent."""
MAX_SEEN: Final = 4096
CHALLENGE = ((b"www-authenticate", b"Bearer"),)


class Access:
    """The rules of the three doors. Each ``require_*`` returns or raises Unauthorized or Forbidden."""

    def __init__(self, settings: ServerSettings, node: str = "") -> None:
        """``node``: this host's name; "": the name by which it is asked does not matter."""
        self._node = node.lower()
        self._clients = {bytes.fromhex(key.hash.rpartition(":")[2]): key for key in settings.keys}
        self._seen: dict[bytes, ClientKey] = {}
        """Right keys as they were presented: only those, so that a guess learns nothing here either."""
        self._admin_hash = settings.admin_key_hash
        token = settings.worker_token.get_secret_value() if settings.worker_token else ""
        self._worker_hash = hash_of(token) if token else None
        self.is_open = not self._clients

    def require_client(self, headers: Mapping[bytes, bytes]) -> ClientKey:
        """The client's key; ``NOBODY`` where the data plane is open."""
        if self.is_open:
            return NOBODY
        presented = headers.get(b"authorization", b"")
        client = self._seen.get(presented)
        if client is None:
            client = self._find(presented, headers)
        if client is None:
            raise Unauthorized(
                "the API key is wrong or missing: send it as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers=CHALLENGE,
            )
        return client

    def _find(self, presented: bytes, headers: Mapping[bytes, bytes]) -> ClientKey | None:
        # Remembered only where that header alone is the key: another one beside it must be looked at each time.
        # A lookup by SHA-256 tells an attacker nothing by its timing: he cannot steer the hash towards a known one.
        client = self._clients.get(hashlib.sha256(key_in(headers)).digest())
        if client is not None and bearer_in(headers) and len(self._seen) < MAX_SEEN:
            self._seen[presented] = client
        return client

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
            if self._node and not is_own_name(headers.get(b"host", b""), self._node):
                raise Forbidden(f"{closed} (and asked for by this machine's own name or address)")
            return
        if not hmac.compare_digest(hash_of(key_in(headers)), expected):
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


def is_own_name(host: bytes, node: str) -> bool:
    """Whether a ``Host`` header names this machine, or an address. Another name may be a web page's, which its owner
    lets point here for a moment (DNS rebinding).
    """
    try:
        name = (urlsplit(f"//{host.decode('latin-1')}").hostname or "").lower()
        if name in ("", "localhost") or name.partition(".")[0] == node.partition(".")[0]:
            return True
        ip_address(name)
    except ValueError:
        return False
    return True


def hash_of(key: str | bytes) -> str:
    """A key as config.yaml holds it. Keys are long and random, so a plain hash is as good as a slow one."""
    return f"sha256:{hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()}"


def key_in(headers: Mapping[bytes, bytes]) -> bytes:
    """The key that a request presents; b"" without one."""
    return bearer_in(headers) or headers.get(b"x-api-key", b"")


def bearer_in(headers: Mapping[bytes, bytes]) -> bytes:
    """The key in ``Authorization: Bearer KEY``; b"" without one, and for another scheme."""
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""

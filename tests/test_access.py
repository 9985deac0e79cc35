"""The three doors: client keys, the admin key, the worker token."""

import hashlib
from collections.abc import Callable

import pytest
from pydantic import SecretStr

from config.settings import ClientKey, ServerSettings
from relay.access import Access, hash_of
from utils.errors import Forbidden, Unauthorized

KEY, ADMIN, TOKEN = "sk-client", "sk-admin", "worker-token"
HERE, AWAY = "127.0.0.1", "10.0.0.7"
OPEN = Access(ServerSettings())
CLOSED = Access(
    ServerSettings(
        keys=(ClientKey(name="alice", hash=hash_of(KEY)), ClientKey(name="bob", hash=hash_of("sk-bob"))),
        admin_key_hash=hash_of(ADMIN),
        worker_token=SecretStr(TOKEN),
    )
)


def bearer(key: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {key}".encode()}


def test_a_key_is_hashed_as_sha256sum_does_it() -> None:
    assert hash_of("x") == "sha256:" + hashlib.sha256(b"x").hexdigest()


def test_without_keys_everybody_may_ask() -> None:
    assert OPEN.is_open
    assert OPEN.require_client({}).name == ""
    assert OPEN.require_client(bearer("any")).name == ""


@pytest.mark.parametrize(
    "headers",
    [
        {b"authorization": b"Bearer sk-client"},
        {b"authorization": b"bearer sk-client"},
        {b"authorization": b"Bearer  sk-client "},
        {b"x-api-key": b"sk-client"},
        {b"authorization": b"Basic abc", b"x-api-key": b"sk-client"},
    ],
)
def test_a_client_is_known_by_its_key_in_either_header(headers: dict[bytes, bytes]) -> None:
    assert not CLOSED.is_open
    assert CLOSED.require_client(headers).name == "alice"


def test_each_client_has_its_own_name() -> None:
    assert CLOSED.require_client(bearer("sk-bob")).name == "bob"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(""),
        bearer("sk-Client"),
        bearer(hash_of(KEY)),
        {b"authorization": b"sk-client"},
        {b"authorization": b"Basic sk-client"},
        {b"x-api-key": b""},
        {b"x-api-key": b"\xff\xfe"},
        bearer(ADMIN),
        bearer(TOKEN),
    ],
)
def test_whoever_has_no_key_of_a_client_is_unauthorized(headers: dict[bytes, bytes]) -> None:
    with pytest.raises(Unauthorized) as caught:
        CLOSED.require_client(headers)
    assert caught.value.code == "invalid_api_key"
    assert (b"www-authenticate", b"Bearer") in caught.value.headers
    assert "Authorization: Bearer" in caught.value.message


def test_a_wrong_key_is_not_repeated() -> None:
    with pytest.raises(Unauthorized) as caught:
        CLOSED.require_client(bearer("sk-mistyped"))
    assert "mistyped" not in caught.value.message


Door = Callable[[Access, dict[bytes, bytes], str], None]
DOORS = [
    pytest.param(Access.require_admin, ADMIN, "admin_key_hash", id="admin"),
    pytest.param(Access.require_worker, TOKEN, "worker_token", id="worker"),
]


@pytest.mark.parametrize(("door", "key", "setting"), DOORS)
def test_without_a_key_the_door_is_for_this_machine_alone(door: Door, key: str, setting: str) -> None:
    for host in (HERE, "::1", "::ffff:127.0.0.1"):
        door(OPEN, {}, host)
    for host in (AWAY, "", "::ffff:10.0.0.7"):
        with pytest.raises(Forbidden, match=setting):
            door(OPEN, bearer(key), host)


@pytest.mark.parametrize(("door", "key", "setting"), DOORS)
def test_a_page_of_another_place_is_not_this_machine(door: Door, key: str, setting: str) -> None:
    for origin in (b"http://localhost:4000", b"http://127.0.0.1", b"https://[::1]:4000"):
        door(OPEN, {b"origin": origin}, HERE)
    for origin in (b"http://evil.example", b"http://127.evil.example", b"null", b"http://[", b"http://10.0.0.7"):
        with pytest.raises(Forbidden, match=setting):
            door(OPEN, {b"origin": origin}, HERE)
        door(CLOSED, {**bearer(key), b"origin": origin}, HERE)


@pytest.mark.parametrize(("door", "key", "setting"), DOORS)
def test_with_a_key_the_door_opens_to_whoever_has_it(door: Door, key: str, setting: str) -> None:
    door(CLOSED, bearer(key), AWAY)
    for headers in ({}, bearer("wrong"), bearer(KEY), bearer("")):
        for host in (HERE, AWAY):
            with pytest.raises(Unauthorized):
                door(CLOSED, headers, host)


def test_the_worker_token_is_no_admin_key_and_the_other_way_round() -> None:
    with pytest.raises(Unauthorized):
        CLOSED.require_admin(bearer(TOKEN), HERE)
    with pytest.raises(Unauthorized):
        CLOSED.require_worker(bearer(ADMIN), HERE)


@pytest.mark.parametrize(
    "host", ["localhost:4000", "127.0.0.1:4000", "[::1]:4000", "10.0.0.7", "mynode", "mynode.lan:80", ""]
)
def test_this_machine_may_be_asked_by_its_names_and_addresses(host: str) -> None:
    Access(ServerSettings(), "mynode").require_admin({b"host": host.encode()}, "127.0.0.1")


@pytest.mark.parametrize("host", ["evil.com", "evil.com:4000", "localhost.evil.com", "mynode2", "]["])
def test_a_foreign_name_that_points_here_is_refused(host: str) -> None:
    with pytest.raises(Forbidden):
        Access(ServerSettings(), "mynode").require_admin({b"host": host.encode()}, "127.0.0.1")

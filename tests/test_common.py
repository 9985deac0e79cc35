"""Sockets, addresses, and background tasks."""

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator

import pytest

from tests.doubles import logged
from utils.common import (
    Tasks,
    address_facing,
    bind_socket,
    is_loopback,
    package_version,
    port_is_free,
    raise_open_files_limit,
    url_host,
)


@contextlib.contextmanager
def listening() -> Iterator[int]:
    with bind_socket("127.0.0.1", 0) as sock:
        sock.listen()
        yield sock.getsockname()[1]


def test_a_version_is_that_of_the_first_package_there_is() -> None:
    assert package_version("no-such-package", "pytest") == pytest.__version__
    assert package_version("no-such-package") == "unknown"


def test_a_port_is_free_until_somebody_listens() -> None:
    with listening() as port:
        assert not port_is_free("127.0.0.1", port)
    assert port_is_free("127.0.0.1", port)


def test_a_port_is_not_free_where_somebody_listens_on_all_addresses() -> None:
    with bind_socket("0.0.0.0", 0) as sock:
        sock.listen()
        assert not port_is_free("127.0.0.1", sock.getsockname()[1])


def test_an_address_of_another_machine_is_not_free_here() -> None:
    assert not port_is_free("192.0.2.1", 80)  # of no machine at all (RFC 5737)


def test_a_port_that_is_in_use_is_an_oserror() -> None:
    with listening() as port, pytest.raises(OSError, match="in use"):
        bind_socket("127.0.0.1", port)


def test_a_bound_socket_does_not_block_the_loop() -> None:
    with bind_socket("127.0.0.1", 0) as sock:
        assert sock.getsockname()[1] > 0
        assert not sock.getblocking()


def test_an_ipv6_address_gets_an_ipv6_socket() -> None:
    with bind_socket("::1", 0) as sock:
        sock.listen()
        assert sock.family == socket.AF_INET6
        assert not port_is_free("::1", sock.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "::ffff:127.0.0.1"])
def test_this_machine_is_known_by_its_names(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "0.0.0.0", "::", "", "::ffff:10.0.0.1", "12.7.0.0", "testclient"])
def test_others_are_not_this_machine(host: str) -> None:
    assert not is_loopback(host)


def test_ipv6_hosts_are_in_brackets_in_urls() -> None:
    assert url_host("::1") == "[::1]"
    assert url_host("10.0.0.1") == "10.0.0.1"


def test_a_gateway_on_this_machine_sees_us_at_loopback() -> None:
    assert address_facing("127.0.0.1", 4000) == "127.0.0.1"
    assert address_facing("::1", 4000) == "::1"


def test_the_limit_of_open_files_is_raised_to_what_the_system_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        raise_open_files_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.anyio
async def test_tasks_are_cancelled_together_and_awaited() -> None:
    tasks, ended = Tasks(), []

    async def wait(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    for name in ("a", "b"):
        tasks.start(wait(name), name)
    await asyncio.sleep(0)
    await tasks.cancel()
    assert sorted(ended) == ["a", "b"]


@pytest.mark.anyio
async def test_a_task_that_crashes_is_logged_and_disturbs_no_other() -> None:
    tasks, going_on = Tasks(), asyncio.Event()

    async def crash() -> None:
        raise KeyError("of its own")

    other = tasks.start(going_on.wait(), "other")
    with logged() as events:
        crashed = tasks.start(crash(), "supervisor")
        await asyncio.wait({crashed})
        await asyncio.sleep(0)
    [record] = events.named("task_crashed")
    assert record.__dict__["values"]["task"] == "supervisor"
    assert record.exc_info is not None
    assert record.exc_info[0] is KeyError
    assert not other.done()
    await tasks.cancel()


@pytest.mark.anyio
async def test_a_cancelled_task_is_no_crash() -> None:
    tasks = Tasks()
    with logged() as events:
        tasks.start(asyncio.Event().wait(), "a")
        await asyncio.sleep(0)
        await tasks.cancel()
        await asyncio.sleep(0)
    assert not events.records

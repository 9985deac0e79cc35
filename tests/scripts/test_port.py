import os
import socket
from collections.abc import Iterator

import pytest

from scripts.setup.port import is_free, next_free, owner_of, require_free
from scripts.setup.trouble import Trouble


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_with_a_listener_is_taken(taken: int) -> None:
    assert not is_free(taken)
    assert not is_free(taken, "0.0.0.0")


def test_a_port_is_free_again_without_its_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert is_free(port)
    require_free(port)


def test_who_has_the_port_is_said(taken: int) -> None:
    assert f"(pid {os.getpid()})" in owner_of(taken)
    with pytest.raises(Trouble) as trouble:
        require_free(taken)
    assert f"Port {taken} on 127.0.0.1 is taken by" in str(trouble.value)
    assert "scripts/quickstart --port" in str(trouble.value)


def test_nobody_has_a_free_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert owner_of(port) == ""


def test_the_next_free_port_is_found() -> None:
    assert next_free(8001, taken=lambda port: port < 8004) == 8004
    with pytest.raises(Trouble, match="No port from 65000 on is free"):
        next_free(65000, taken=lambda port: True)

"""Which headers cross the gateway."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.headers import lines, lines_to_worker, request_head, request_id, to_client, to_worker
from tests.doubles import PATIENT

ADDRESS = ("127.0.0.1", 8001)


def head(*headers: tuple[bytes, bytes], target: bytes = b"/v1/x", address: tuple[str, int] = ADDRESS) -> list[bytes]:
    return request_head(target, address, lines_to_worker(headers), b"req-1", 12).split(b"\r\n")


def test_a_head_is_a_request_line_headers_and_a_blank_line() -> None:
    assert head((b"content-type", b"application/json"), target=b"/v1/x?a=1") == [
        b"POST /v1/x?a=1 HTTP/1.1", b"host: 127.0.0.1:8001", b"x-request-id: req-1",
        b"content-type: application/json", b"content-length: 12", b"", b"",
    ]  # fmt: skip


def test_an_ipv6_worker_is_named_in_brackets() -> None:
    assert b"host: [::1]:8001" in head(address=("::1", 8001))


@pytest.mark.parametrize(
    "name",
    [b"authorization", b"x-api-key", b"cookie", b"proxy-authorization", b"connection", b"keep-alive", b"te", b"upgrade",
     b"transfer-encoding", b"host", b"content-length", b"expect", b"accept-encoding", b"x-request-id"],
)  # fmt: skip
def test_secrets_and_what_is_of_the_first_hop_do_not_reach_a_worker(name: bytes) -> None:
    assert b"from-the-client" not in b"".join(head((name, b"from-the-client")))


@pytest.mark.parametrize("name", [b"traceparent", b"user-agent", b"x-custom", b"accept", b"x-forwarded-for"])
def test_the_rest_reaches_the_worker(name: bytes) -> None:
    assert name + b": v" in head((name, b"v"))


@pytest.mark.parametrize(
    "values",
    [
        [b"x-secret, x-other"],
        [b"x-secret", b"x-other"],
        [b"X-Other", b"close", b"X-SECRET , keep-alive"],
        [b"x-other,x-secret", b"close"],
        [b"keep-alive", b"x-secret", b",x-other"],
    ],
)
def test_what_any_connection_header_names_is_of_this_hop_only(values: list[bytes]) -> None:
    theirs = [(b"x-secret", b"1"), (b"accept", b"*/*"), (b"x-other", b"2")]
    connection = [(b"connection", value) for value in values]
    assert lines_to_worker(to_worker([*connection[:1], *theirs, *connection[1:]])) == b"accept: */*\r\n"


@pytest.mark.parametrize("values", [[], [b"keep-alive"], [b"Close"], [b"keep-alive", b"Keep-Alive"], [b""]])
def test_a_connection_header_that_names_nothing_takes_nothing_away(values: list[bytes]) -> None:
    theirs = [(b"x-other", b"2"), *((b"connection", value) for value in values)]
    assert lines_to_worker(to_worker(theirs)) == b"x-other: 2\r\n"


@pytest.mark.parametrize("name", [b"set-cookie", b"server", b"connection", b"transfer-encoding",
                                  b"x-request-id", b"x-ichat-worker", b"x-ichat-attempts"])  # fmt: skip
def test_what_is_not_the_clients_business_is_left_out(name: bytes) -> None:
    assert to_client([(name, b"the worker's"), (b"content-type", b"a/b")]) == [(b"content-type", b"a/b")]


def test_the_workers_others_are_passed_on() -> None:
    theirs = [(b"content-type", b"a/b"), (b"content-length", b"3"), (b"retry-after", b"1")]
    assert to_client(theirs) == theirs
    assert lines(theirs) == b"content-type: a/b\r\ncontent-length: 3\r\nretry-after: 1\r\n"


def test_the_clients_own_request_id_is_kept() -> None:
    assert request_id({b"x-request-id": b"my id/7"}) == b"my id/7"


@pytest.mark.parametrize("given_id", [b"", b"x" * 201, b"a\tb", b"a\x7f", b"\xff", "模".encode()])
def test_a_request_id_that_is_not_sane_is_replaced(given_id: bytes) -> None:
    first, second = (request_id({b"x-request-id": given_id}) for _ in range(2))
    assert first.startswith(b"req-")
    assert first != second


@PATIENT
@given(st.binary())
def test_no_request_id_can_break_a_head(given_id: bytes) -> None:
    found = request_id({b"x-request-id": given_id})
    assert found
    assert not set(found) & set(range(0x20))

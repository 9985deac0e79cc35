"""Errors as clients see them: OpenAI's envelope, the right status, words that help."""

import json

import pytest

from utils import errors
from utils.errors import ApiError, ConfigError, IChatError, ModelNotFound, NoReplicaReady


@pytest.mark.parametrize(
    ("kind", "status", "type_"),
    [
        (errors.BadRequest, 400, "invalid_request_error"),
        (errors.Unauthorized, 401, "authentication_error"),
        (errors.Forbidden, 403, "permission_error"),
        (errors.NotFound, 404, "not_found_error"),
        (errors.MethodNotAllowed, 405, "invalid_request_error"),
        (errors.RequestTimeout, 408, "invalid_request_error"),
        (errors.Conflict, 409, "conflict_error"),
        (errors.PayloadTooLarge, 413, "invalid_request_error"),
        (errors.UnsupportedMediaType, 415, "invalid_request_error"),
        (errors.InternalError, 500, "server_error"),
        (errors.WorkerBroke, 502, "server_error"),
        (errors.WorkerTimeout, 504, "server_error"),
    ],
)
def test_every_error_has_its_status_and_type(kind: type[ApiError], status: int, type_: str) -> None:
    error = kind("do this", code="c", param="p")
    assert error.status == status
    assert error.envelope() == {"error": {"message": "do this", "type": type_, "param": "p", "code": "c"}}
    assert str(error) == "do this"


def test_the_body_is_the_envelope_in_utf8() -> None:
    error = errors.BadRequest("模型 does not exist")
    assert "模型".encode() in error.body()
    assert json.loads(error.body()) == error.envelope()


def test_an_unknown_model_is_answered_with_those_there_are() -> None:
    error = ModelNotFound("gtp", ["gpt", "qwen"])
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert "'gtp'" in error.message
    assert "gpt, qwen" in error.message


def test_an_unknown_model_is_told_when_there_is_none_at_all() -> None:
    assert "No model is registered" in ModelNotFound("m", []).message


def test_a_senseless_model_name_does_not_fill_the_answer() -> None:
    assert len(ModelNotFound("x" * 100_000, []).message) < 300


def test_no_ready_replica_says_when_to_come_again() -> None:
    error = NoReplicaReady("m is loading", retry_after_s=7)
    assert (error.status, error.code) == (503, "no_replica_ready")
    assert (b"retry-after", b"7") in error.headers


def test_a_bare_status_finds_its_error() -> None:
    for status, kind in errors.BY_STATUS.items():
        assert kind("x").status == status
    assert errors.BY_STATUS[404] is errors.NotFound


def test_all_errors_can_be_caught_as_one() -> None:
    assert issubclass(ConfigError, IChatError)
    assert issubclass(ApiError, IChatError)
    assert not issubclass(ConfigError, ApiError)


def test_too_many_requests_say_when_to_come_again_or_that_it_is_no_use() -> None:
    error = errors.TooManyRequests("slowly", code="queue_full", retry_after_s=9, headers=((b"x-a", b"b"),))
    assert (error.status, error.type, error.code) == (429, "rate_limit_error", "queue_full")
    assert error.headers == ((b"retry-after", b"9"), (b"x-a", b"b"))
    hopeless = errors.TooManyRequests("never", code="rate_limit_exceeded", retry_after_s=None)
    assert hopeless.headers == ((b"x-should-retry", b"false"),)


def test_who_waited_too_long_is_told_when_to_come_again() -> None:
    error = errors.QueueTimeout("too long", retry_after_s=3)
    assert (error.status, error.type, error.code) == (503, "server_error", "queue_timeout")
    assert error.headers == ((b"retry-after", b"3"),)


def test_of_thousands_of_models_an_error_names_some() -> None:
    named = [f"model-{number:04}" for number in range(5000)]
    few, many = (errors.ModelNotFound("x", named[:count]).message for count in (errors.MAX_NAMED, 5000))
    assert few.endswith(f"{named[errors.MAX_NAMED - 1]}.")
    assert many.endswith(
        f"{named[errors.MAX_NAMED - 1]}, and {5000 - errors.MAX_NAMED} more: GET /v1/models lists them."
    )

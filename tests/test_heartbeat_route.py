"""A heartbeat at the gateway's door: what is refused, and in which words."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api import workers
from api.envelope import install_error_envelope
from config.settings import ServerSettings
from monitor.registry import WorkerRegistry
from relay.access import Access

pytestmark = pytest.mark.anyio

BEAT = {"worker_id": "a", "model_name": "m", "backend": "other", "host": "127.0.0.1", "port": 9000}


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    install_error_envelope(app)
    app.include_router(workers.routes(WorkerRegistry(), Access(ServerSettings())))
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", verify=False) as client:
        yield client


async def post(http: httpx.AsyncClient, beat: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    answer = await http.post("/v1/workers/heartbeat", json=beat)
    error: dict[str, Any] = answer.json().get("error", {})
    return answer.status_code, error


async def test_a_second_worker_at_one_address_is_refused_and_told_what_to_do(http: httpx.AsyncClient) -> None:
    assert (await post(http, BEAT))[0] == 200
    status, error = await post(http, {**BEAT, "worker_id": "b", "model_name": "n"})
    assert (status, error["type"], error["code"], error["param"]) == (409, "conflict_error", "address_in_use", "port")
    for word in ("127.0.0.1:9000", "'a'", "one address is one worker", "adapters", "model_list", "90 s"):
        assert word in error["message"]
    assert (await post(http, {**BEAT, "adapters": ["n"]}))[0] == 200


async def test_a_second_worker_of_one_id_is_refused(http: httpx.AsyncClient) -> None:
    assert (await post(http, BEAT))[0] == 200
    status, error = await post(http, {**BEAT, "port": 9001})
    assert (status, error["code"], error["param"]) == (409, "worker_id_in_use", "worker_id")


async def test_all_that_a_heartbeat_lacks_is_named(http: httpx.AsyncClient) -> None:
    status, error = await post(http, {"worker_id": "a", "state": "happy"})
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", "model_name")
    told = [part.partition(": ")[0] for part in error["message"].split("; ")]
    assert told == ["model_name", "backend", "host", "port", "state"]
    assert "port: Field required" in error["message"]


@pytest.mark.parametrize(("wrong", "named", "end"), [(10, 10, "integer"), (13, 10, "(3 more)")])
async def test_ten_wrong_fields_are_named_and_the_others_counted(
    http: httpx.AsyncClient, wrong: int, named: int, end: str
) -> None:
    _, error = await post(http, {**BEAT, "gpu_ids": ["secret"] * wrong})
    assert error["message"].count("gpu_ids.") == named
    assert end in error["message"].rpartition("; ")[2]
    assert "secret" not in error["message"]

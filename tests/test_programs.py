"""gateway.py and serve.py as a user runs them, on the fake engine: joining, dying, coming back, stopping."""

import concurrent.futures
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support import (
    GatewayClient,
    Program,
    chat_body,
    fake_worker,
    free_port,
    gateway,
    is_running,
    running,
    wait_until,
    worker,
    write_config,
)

pytestmark = pytest.mark.share("programs")

NOTICED_S = 10.0
"""Within this a dead worker must be known to be dead; where nothing else runs, it is within one second."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayClient]:
    """One gateway with one managed worker, for tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("shared")
    workers = [fake_worker("org/fake", aliases=["nick"])]
    with gateway(folder, fresh=True, managed_workers=workers) as (_, client):
        client.wait_for("org/fake")
        yield client


def test_a_managed_worker_answers(shared: GatewayClient) -> None:
    answer = shared.chat("org/fake", max_tokens=3)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 3
    assert answer.headers["x-ichat-worker"] == shared.wait_for("org/fake")["worker_id"]
    assert shared.chat("nick").json()["choices"] == shared.chat("org/fake").json()["choices"]


def test_embeddings_and_completions_answer(shared: GatewayClient) -> None:
    vectors = shared.http.post("/v1/embeddings", json={"model": "nick", "input": ["a", "b"]}).json()["data"]
    assert [row["index"] for row in vectors] == [0, 1]
    text = shared.http.post("/v1/completions", json={"model": "nick", "prompt": "p"}).json()
    assert text["object"] == "text_completion"


def test_a_stream_ends_with_done(shared: GatewayClient) -> None:
    body = chat_body("org/fake", stream=True, stream_options={"include_usage": True})
    lines = shared.http.post("/v1/chat/completions", json=body).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert json.loads(lines[-3][6:])["usage"]["completion_tokens"] == 16


def test_an_adapter_is_a_model_while_it_is_loaded(shared: GatewayClient, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    adapters = f"/v1/admin/workers/{shared.wait_for('org/fake')['worker_id']}/adapters"
    loaded = shared.http.post(adapters, json={"name": "org/tuned", "path": str(tmp_path)})
    assert (loaded.status_code, loaded.json()["adapters"]) == (200, ["org/tuned"]), loaded.text
    wait_until(lambda: shared.chat("org/tuned").status_code == 200, "the adapter answers")
    assert shared.http.get("/v1/models/org/tuned").json()["ichat"]["adapter_of"] == "org/fake"
    again = shared.http.post(adapters, json={"name": "org/tuned", "path": str(tmp_path)})
    assert again.status_code == 409
    missing = shared.http.post(adapters, json={"name": "other", "path": str(tmp_path / "none")})
    assert missing.status_code == 400
    assert "no such folder" in missing.json()["error"]["message"]
    assert shared.http.post(adapters, json={"name": "other"}).status_code == 400
    assert shared.http.delete(f"{adapters}/org/tuned").status_code == 200
    wait_until(lambda: shared.chat("org/tuned").status_code == 404, "the adapter is gone")
    assert shared.http.delete(f"{adapters}/org/tuned").status_code == 404
    assert shared.chat("org/fake").status_code == 200


def test_models_are_listed_and_found_by_name(shared: GatewayClient) -> None:
    listed = shared.http.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["nick", "org/fake"]
    assert shared.http.get("/v1/models/org/fake").json()["object"] == "model"
    missing = shared.http.get("/v1/models/none")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


def test_the_control_plane_answers(shared: GatewayClient) -> None:
    found = shared.wait_for("org/fake")
    assert shared.http.get(f"/v1/admin/workers/{found['worker_id']}").json()["managed"] is True
    assert shared.http.get("/v1/admin/workers/none").status_code == 404
    status = shared.http.get("/v1/admin/cluster/status").json()
    assert status["workers"] == {"total": 1, "by_status": {"healthy": 1}}
    assert status["machine"]["memory"]["total"] > 0
    assert found["worker_id"] in shared.http.get("/v1/admin/cluster/version").json()["workers"]
    assert shared.http.get("/ready").json()["models"] == ["nick", "org/fake"]
    assert "ichat_gateway_workers" in shared.http.get("/metrics").text
    assert "/v1/chat/completions" in shared.http.get("/openapi.json").json()["paths"]


def test_unknown_routes_and_methods_are_enveloped(shared: GatewayClient) -> None:
    assert "no route" in shared.http.get("/v1/nothing").json()["error"]["message"]
    wrong = shared.http.get("/v1/workers/heartbeat")
    assert wrong.status_code == 405
    assert "use POST" in wrong.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"port": "many"}, "port"),
        ({"port": 70000}, "port"),
        ({"worker_id": ""}, "worker_id"),
        ({"state": "happy"}, "state"),
        ({"host": "a b"}, "host"),
        ({"heartbeat_interval": -1}, "heartbeat_interval"),
    ],
)
def test_a_heartbeat_of_wrong_types_is_a_400_that_names_the_field(
    shared: GatewayClient, change: dict[str, object], named: str
) -> None:
    beat = {"worker_id": "w", "model_name": "m", "backend": "b", "host": "127.0.0.1", "port": 1, **change}
    answer = shared.http.post("/v1/workers/heartbeat", json=beat)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == named
    assert [entry["model_name"] for entry in shared.workers()] == ["org/fake"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"'])
def test_a_heartbeat_that_is_no_object_is_a_400(shared: GatewayClient, body: bytes) -> None:
    answer = shared.http.post("/register", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_the_log_of_a_worker_is_streamed_with_its_history(shared: GatewayClient) -> None:
    worker_id = shared.wait_for("org/fake")["worker_id"]
    with shared.http.stream("GET", f"/v1/logs/stream/{worker_id}") as stream:
        texts = (json.loads(line[6:])["text"] for line in stream.iter_lines() if line.startswith("data: "))
        assert any("now=ready" in text for text in texts)
    assert shared.http.get("/v1/logs/stream/none").status_code == 404


def test_half_of_200_streams_vanish_and_the_worker_is_free_again(shared: GatewayClient) -> None:
    port = int(shared.url.rpartition(":")[2])
    found = shared.wait_for("org/fake")
    body = json.dumps(chat_body("org/fake", stream=True, fake={"tokens": 20, "rate": 10})).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += b"content-length: %d\r\n\r\n" % len(body)
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
    try:
        for client in clients:
            client.sendall(head + body)
        for client in clients:
            assert client.recv(1024).startswith(b"HTTP/1.1 200")
        for client in clients[::2]:
            client.close()

        def in_flight() -> int:
            return int(
                httpx.get(f"http://{found['address']}/health", trust_env=False, verify=False).json()["in_flight"]
            )

        wait_until(lambda: in_flight() <= 100, "the vanished ones' requests ended", 10)
        for client in clients[1::2]:
            whole = b""
            while not whole.endswith(b"0\r\n\r\n"):
                piece = client.recv(65536)
                assert piece, "a stream ended early"
                whole += piece
        wait_until(lambda: in_flight() == 0, "nothing in flight", 10)
    finally:
        for client in clients:
            client.close()


# -- dying and coming back -------------------------------------------------------------------------------------------


def test_a_worker_started_by_hand_joins_dies_and_comes_back(tmp_path: Path) -> None:
    port = free_port()
    with gateway(tmp_path) as (_, client), worker(tmp_path, "a", free_port(), client.url):
        client.wait_for("a")
        with worker(tmp_path, "b", port, client.url) as by_hand:
            client.wait_for("b")
            assert {client.chat(model).status_code for model in ("a", "b")} == {200}
            by_hand.signal(signal.SIGKILL)
            wait_until(lambda: client.status("b") == "unhealthy", "noticed", NOTICED_S)
        refused = client.chat("b")
        assert refused.status_code == 503
        assert "b is unhealthy" in refused.json()["error"]["message"].replace(f"b-{socket.gethostname()}-{port}", "b")
        with worker(tmp_path, "b", port, client.url):
            client.wait_for("b")
            assert client.chat("b").status_code == 200
            assert len(client.workers()) == 2


def test_a_managed_worker_that_is_killed_is_started_again(tmp_path: Path) -> None:
    with gateway(tmp_path, managed_workers=[fake_worker("a")]) as (_, client):
        before = client.wait_for("a")
        os.kill(before["pid"], signal.SIGKILL)
        wait_until(lambda: client.status("a") in ("unhealthy", "failed"), "noticed", NOTICED_S)
        after = client.wait_for("a")
        assert after["pid"] != before["pid"]
        assert after["restarts"] == 1
        metrics = httpx.get(f"http://{after['address']}/metrics", trust_env=False, verify=False).text
        assert "ichat_worker_restarts_total 1.0" in metrics
        assert client.chat("a").status_code == 200


def test_a_killed_gateway_finds_its_workers_again(tmp_path: Path) -> None:
    by_hand_port, managed = free_port(), fake_worker("managed")
    config = write_config(tmp_path, managed_workers=[managed], server_settings={"port": free_port()})
    argv, log = ["gateway.py", "--config", str(config)], tmp_path / "gateway.log"
    client = GatewayClient(int(config.read_text().split("port: ")[-1].split()[0]))
    first = Program(argv, log)
    try:
        client.wait_for("managed")
        with worker(tmp_path, "by-hand", by_hand_port, client.url, "--heartbeat-interval", "30"):
            pids = {name: client.wait_for(name)["pid"] for name in ("managed", "by-hand")}
            wait_until(lambda: "by-hand" in str(client.http.get("/v1/models").json()), "routed")
            first.process.kill()
            first.wait()
            with running(argv, log) as second:
                for name in ("managed", "by-hand"):
                    assert client.wait_for(name)["pid"] == pids[name], "the same process, not a new one"
                assert client.worker("managed")["managed"] is True  # type: ignore[index]
                assert {client.chat(name).status_code for name in ("managed", "by-hand")} == {200}
                second.signal(signal.SIGTERM)
                assert second.wait() == 0
            assert not is_running(pids["managed"])
            assert is_running(pids["by-hand"])
    finally:
        first.end()
        client.http.close()


def test_workers_that_cannot_start_fail_alone_with_their_reasons(tmp_path: Path) -> None:
    wrong, taken = fake_worker("wrong", backend_args={"no_such_thing": 1}), fake_worker("taken")
    workers = [wrong, taken, fake_worker("b")]
    taking = socket.create_server(("127.0.0.1", taken["port"]))
    with taking, gateway(tmp_path, managed_workers=workers) as (program, client):
        assert "--no-such-thing" in client.wait_for("wrong", "failed")["reason"]
        assert f"port {taken['port']} is in use" in client.wait_for("taken", "failed")["reason"]
        client.wait_for("b")
        assert client.chat("b").status_code == 200
        wait_until(lambda: "worker_given_up worker_id=wrong" in program.output(), "given up")
        assert program.output().count("worker_spawned worker_id=wrong") == 1, "other arguments come with another start"


# -- stopping --------------------------------------------------------------------------------------------------------


def test_a_stopping_worker_finishes_what_is_in_flight(tmp_path: Path) -> None:
    with gateway(tmp_path) as (_, client), worker(tmp_path, "a", free_port(), client.url) as by_hand:
        client.wait_for("a")
        with concurrent.futures.ThreadPoolExecutor() as pool:
            asking = pool.submit(client.chat, "a", fake={"tokens": 10, "rate": 10})
            wait_until(lambda: client.wait_for("a")["in_flight"] == 1, "in flight")
            by_hand.signal(signal.SIGTERM)
            wait_until(lambda: client.status("a") == "draining", "draining")
            assert client.chat("a").status_code == 503
            assert asking.result().json()["usage"]["completion_tokens"] == 10
        assert by_hand.wait() == 0
        wait_until(lambda: client.status("a") == "stopped", "known to have stopped")


def test_ctrl_c_ends_everything_with_readers_and_streams_open(tmp_path: Path) -> None:
    settings = {"drain_timeout_s": 2}  # more than a half of it is waited for the stream
    with gateway(tmp_path, server_settings=settings, managed_workers=[fake_worker("a")]) as (program, client):
        found = client.wait_for("a")
        body = chat_body("a", stream=True, fake={"tokens": 10_000, "rate": 20})
        with (
            client.http.stream("GET", f"/v1/logs/stream/{found['worker_id']}") as log,
            client.http.stream("POST", "/v1/chat/completions", json=body) as answer,
        ):
            tokens = answer.iter_lines()
            next(tokens)
            program.signal(signal.SIGINT)
            assert list(log.iter_lines()), "the history, and then its end"
            assert "the gateway is stopping" in "".join(tokens)
        assert program.wait() == 0
        assert not is_running(found["pid"])
        # A gateway that stops takes no beats: that none come is nothing to judge a worker by.
        assert "no heartbeat" not in program.output()


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    settings = {"drain_timeout_s": 300}
    with gateway(tmp_path, server_settings=settings, managed_workers=[fake_worker("a")]) as (program, client):
        found = client.wait_for("a")
        body = chat_body("a", stream=True, fake={"tokens": 10_000, "rate": 20})
        with client.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            next(answer.iter_lines())
            program.signal(signal.SIGINT)
            wait_until(lambda: "gateway_draining" in program.output(), "draining")
            program.signal(signal.SIGINT)
            assert program.wait() == 0
        assert not is_running(found["pid"])


# -- wrong from the start --------------------------------------------------------------------------------------------


def test_a_wrong_config_is_a_clear_error_and_code_2(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("managed_worker: []")
    with running(["gateway.py", "--config", str(config)], tmp_path / "log", fresh=True) as program:
        assert program.wait() == 2
    assert "did you mean managed_workers?" in program.output()
    assert "Traceback" not in program.output()


def test_a_gpu_that_is_not_there_is_a_clear_error_and_code_2(tmp_path: Path) -> None:
    config = write_config(tmp_path, managed_workers=[{**fake_worker("a", gpu_ids=[99]), "backend": "vllm"}])
    with running(["gateway.py", "--config", str(config)], tmp_path / "log") as program:
        assert program.wait() == 2
    assert "managed_workers.0.gpu_ids: this machine has no GPU 99: " in program.output()
    assert "Traceback" not in program.output()


@pytest.mark.parametrize(("engine", "code", "said"), [("fake", 0, "--fault-after"), ("vlm", 2, "the backends are")])
def test_help_of_an_engine(tmp_path: Path, engine: str, code: int, said: str) -> None:
    with running(["serve.py", f"--help={engine}"], tmp_path / "log") as program:
        assert program.wait() == code
    assert said in program.output()


def test_a_port_in_use_is_a_clear_error(tmp_path: Path) -> None:
    port = free_port()
    config = write_config(tmp_path, server_settings={"port": port})
    with socket.create_server(("127.0.0.1", port)):
        with running(["gateway.py", "--config", str(config)], tmp_path / "log") as program:
            assert program.wait() == 2
        with running(
            ["serve.py", "--model", "x", "--backend", "fake", "--port", str(port)], tmp_path / "log2"
        ) as other:
            assert other.wait() == 2
    assert f"port {port} on 127.0.0.1 cannot be listened on" in program.output()
    assert f"port {port} on 127.0.0.1 cannot be listened on" in other.output()
    assert "Traceback" not in program.output() + other.output()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model", "x", "--backend", "fake", "--nonsense", "1"], "no argument --nonsense"),
        (["--model", "x", "--backend", "fake", "-ga", "http://no.such.host.invalid:1"], "--gateway-address"),
    ],
)
def test_wrong_worker_arguments_are_a_clear_error_and_code_2(tmp_path: Path, argv: list[str], words: str) -> None:
    port = ["--port", str(free_port())] if "--port" not in argv else []
    with running(["serve.py", *argv, *port], tmp_path / "log") as program:
        assert program.wait() == 2
    assert words in program.output()
    assert "Traceback" not in program.output()


def test_a_proxy_on_this_machine_opens_no_admin_door(shared: GatewayClient) -> None:
    forwarded = {"x-forwarded-for": "203.0.113.9"}
    assert shared.http.get("/v1/admin/workers", headers=forwarded).status_code == 403
    assert shared.http.get("/v1/models", headers=forwarded).status_code == 200

from pathlib import Path

import pytest
import yaml

from config.load import load_settings
from scripts.setup.config_file import (
    HOST_VARIABLE,
    PORT_VARIABLE,
    Address,
    Config,
    Model,
    fresh_config,
    interpret,
    model_of,
    read_config,
    write_config,
)
from scripts.setup.trouble import Trouble
from tests.scripts.support import ROOT

PYTHON = ROOT / ".venv" / "bin" / "python"


@pytest.mark.parametrize("gpu", [False, True])
def test_the_gateway_takes_a_fresh_config(tmp_path: Path, gpu: bool) -> None:
    path = tmp_path / "config.yaml"
    write_config(path, fresh_config(Model("demo", str(tmp_path), small=True), 4001, 8003, gpu))
    settings = load_settings(path, {})
    (worker,) = settings.managed_workers
    assert (settings.server_settings.host, settings.server_settings.port) == ("127.0.0.1", 4001)
    assert (worker.model_name, worker.model_path, worker.backend, worker.port) == ("demo", str(tmp_path), "vllm", 8003)
    assert worker.gpu_ids == ((0,) if gpu else None)


@pytest.mark.parametrize("name", ["it's", 'a "b"', "a: b", "yes", "模型", "a\\b", "# c"])
def test_odd_paths_stay_what_they_are(name: str) -> None:
    text = fresh_config(Model(name, f"/models/{name}"), 4000, 8001, gpu=False)
    assert yaml.safe_load(text)["managed_workers"][0]["model_path"] == f"/models/{name}"


def test_a_config_is_understood() -> None:
    values = {
        "server_settings": {"host": "0.0.0.0", "port": 4005, "keys": [{"name": "a"}], "log_dir": "/var/log/ichat"},
        "managed_workers": [{"model_name": "a", "model_path": "/a"}, {"model_name": "b", "model_path": "o/b"}],
    }
    config = interpret(values, {})
    assert config == Config(
        Address("0.0.0.0", 4005), (Model("a", "/a"), Model("b", "o/b")), wants_key=True, log_dir="/var/log/ichat"
    )
    assert config.serves("o/b")
    assert not config.serves("b")


def test_the_environment_stands_above_the_file() -> None:
    environ = {HOST_VARIABLE: "::1", PORT_VARIABLE: "4007"}
    config = interpret({"server_settings": {"host": "127.0.0.1", "port": 4005}}, environ)
    assert config.address.url == "http://[::1]:4007"


@pytest.mark.parametrize("values", [{}, {"server_settings": None, "managed_workers": None}, {"server_settings": 3}])
def test_what_a_config_leaves_out_has_its_default(values: dict[str, object]) -> None:
    config = interpret(values, {})
    assert config.address.url == "http://127.0.0.1:4000"
    assert config.models == ()


def test_a_config_is_read_by_the_environments_python(tmp_path: Path) -> None:
    if not PYTHON.exists():
        pytest.skip("there is no .venv here")
    path = tmp_path / "config.yaml"
    path.write_text("server_settings: {port: 4009}\nmanaged_workers: [{model_name: a, model_path: b}]")
    assert read_config(path, PYTHON, {}) == Config(Address("0.0.0.0", 4009), (Model("a", "b"),))
    path.write_text("server_settings: [")
    with pytest.raises(Trouble, match=r"config\.yaml cannot be read: while parsing"):
        read_config(path, PYTHON, {})


def test_a_model_is_a_folder_or_a_hub_id(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    with pytest.raises(Trouble, match=r"holds no config\.json"):
        model_of("my-model", tmp_path)
    (folder / "config.json").write_text("{}")
    assert model_of("my-model", tmp_path) == Model("my-model", str(folder))
    assert model_of(str(folder), Path("/")) == Model("my-model", str(folder))
    assert model_of("org/model", tmp_path) == Model("org/model", "org/model")


@pytest.mark.parametrize("given", ["model", "./org/model", "/org/model", "a/b/c", "org/", "org/a b"])
def test_what_is_neither_is_refused(given: str, tmp_path: Path) -> None:
    with pytest.raises(Trouble, match="there is no folder"):
        model_of(given, tmp_path)

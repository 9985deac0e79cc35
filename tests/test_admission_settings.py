"""What config.yaml says of queues and of what keys may use, and the words for what is wrong there."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from config.admission import AdmissionSettings, KeyLimits, priority_number
from config.load import load_settings
from config.settings import ClientKey, GatewaySettings
from utils.errors import ConfigError

HASH = "sha256:" + "0" * 64


def load(path: Path, values: dict[str, Any]) -> GatewaySettings:
    file = path / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    return load_settings(file, {})


def key(path: Path, **more: Any) -> ClientKey:
    return load(path, {"server_settings": {"keys": [{"name": "alice", "hash": HASH, **more}]}}).server_settings.keys[0]


def refusal(path: Path, values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, values)
    return str(caught.value)


def test_a_key_that_says_nothing_is_like_all_others(tmp_path: Path) -> None:
    alice = key(tmp_path)
    assert (alice.weight, alice.priority, alice.limits) == (1.0, 5, None)


def test_a_key_may_have_a_weight_a_priority_and_limits(tmp_path: Path) -> None:
    alice = key(tmp_path, weight=2, priority="high", limits={"requests_per_minute": 60, "concurrency": 4})
    assert (alice.weight, alice.priority) == (2.0, 2)
    assert alice.limits == KeyLimits(requests_per_minute=60, concurrency=4)


def test_limits_with_nothing_below_them_are_none(tmp_path: Path) -> None:
    assert key(tmp_path, limits=None).limits is None


@pytest.mark.parametrize(("value", "number"), [("high", 2), ("Normal", 5), (" low", 8), (0, 0), (9, 9), ("7", 7)])
def test_a_priority_is_a_word_or_a_digit(value: Any, number: int) -> None:
    assert priority_number(value) == number


@pytest.mark.parametrize("value", ["", "urgent", "10", "-1", -1, 10, True, 1.0, None, []])
def test_another_priority_is_none(value: Any) -> None:
    with pytest.raises(ValueError, match="high, normal, low, or a number from 0"):
        priority_number(value)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"priority": "urgent"}, "server_settings.keys.0.priority: a priority is high, normal, low"),
        ({"weight": 0}, "server_settings.keys.0.weight"),
        ({"limits": {"concurrency": 0}}, "server_settings.keys.0.limits.concurrency"),
        ({"limits": {"request_per_minute": 5}}, "did you mean requests_per_minute"),
        ({"wieght": 5}, "did you mean weight"),
    ],
)
def test_a_wrong_word_of_a_key_is_named_with_the_right_one(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    values = {"server_settings": {"keys": [{"name": "alice", "hash": HASH, **more}]}}
    assert words in refusal(tmp_path, values)


@pytest.mark.parametrize(
    ("admission", "words"),
    [
        ({"max_queu": 1}, "did you mean max_queue"),
        ({"models": {"m": {"capcity": 1}}}, "did you mean capacity"),
        ({"models": {"7": {"capcity": 1}}}, "did you mean capacity"),
        ({"capacity": 0}, "admission.capacity"),
        ({"max_queue": -1}, "admission.max_queue"),
        ({"default_timeout_s": 0}, "admission.default_timeout_s"),
        ({"models": {"m": {"default_timeout_s": 0}}}, "admission.models.m.default_timeout_s"),
        ({"queue_notice_s": 0}, "admission.queue_notice_s"),
    ],
)
def test_a_wrong_word_on_admission_is_named(tmp_path: Path, admission: dict[str, Any], words: str) -> None:
    assert words in refusal(tmp_path, {"admission": admission})


def test_an_empty_section_is_the_same_as_none(tmp_path: Path) -> None:
    assert load(tmp_path, {"admission": None}).admission == AdmissionSettings()


def test_a_model_differs_only_where_it_says_so(tmp_path: Path) -> None:
    settings = load(
        tmp_path, {"admission": {"capacity": 8, "models": {"m": {"max_queue": 0}, "n": {"default_timeout_s": 5}}}}
    ).admission
    assert [settings.max_queue_of(model) for model in ("m", "n", "other")] == [0, 1000, 1000]
    assert [settings.timeout_of(model) for model in ("m", "n", "other")] == [300, 5, 300]
    assert settings.capacity == 8

"""Which models are asked instead, and a body under another name."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.providers import ProviderSettings
from relay.providers.fallbacks import MAX_FALLBACKS, Fallbacks, Why, rename, why_of
from utils.errors import (
    ApiError,
    BadRequest,
    ModelNotFound,
    NoReplicaReady,
    NotFound,
    TooManyRequests,
    WorkerBroke,
    WorkerTimeout,
)

NAMES = st.sampled_from(["a", "b", "c", "d", "e", "*"])
TABLES = st.dictionaries(NAMES, st.lists(NAMES, max_size=4).map(tuple))


def of(**sections: Any) -> Fallbacks:
    return Fallbacks.of(ProviderSettings.model_validate(sections))


def test_without_a_table_nothing_else_is_asked() -> None:
    assert of().fallbacks_of("a", Why.UNAVAILABLE) == ()


@pytest.mark.parametrize("section", ["litellm_settings", "router_settings"])
def test_fallbacks_come_in_their_order_each_followed_by_its_own(section: str) -> None:
    table = of(**{section: {"fallbacks": [{"a": ["b", "c"]}, {"b": ["d"]}]}})
    assert table.fallbacks_of("a", Why.UNAVAILABLE) == ("b", "d", "c")
    assert table.fallbacks_of("a", Why.QUEUE_FULL) == ("b", "d", "c")
    assert table.fallbacks_of("c", Why.UNAVAILABLE) == ()


def test_the_routers_table_comes_first() -> None:
    table = of(router_settings={"fallbacks": [{"a": ["b"]}]}, litellm_settings={"fallbacks": [{"a": ["c"]}]})
    assert table.fallbacks_of("a", Why.UNAVAILABLE) == ("b",)


def test_a_circle_ends() -> None:
    table = of(litellm_settings={"fallbacks": [{"a": ["b"]}, {"b": ["a"]}]})
    assert table.fallbacks_of("a", Why.UNAVAILABLE) == ("b",)
    assert table.fallbacks_of("b", Why.UNAVAILABLE) == ("a",)


def test_a_long_prompt_goes_where_its_own_table_says_and_else_nowhere() -> None:
    settings = {"fallbacks": [{"a": ["b"]}, {"x": ["b"]}], "context_window_fallbacks": [{"a": ["long"]}]}
    table = of(litellm_settings=settings)
    assert table.fallbacks_of("a", Why.CONTEXT_WINDOW) == ("long",)
    assert table.fallbacks_of("x", Why.CONTEXT_WINDOW) == ()
    assert table.fallbacks_of("a", Why.CONTENT_POLICY) == ("b",), "there is no table for it"


def test_default_fallbacks_are_for_those_without_a_line() -> None:
    table = of(litellm_settings={"fallbacks": [{"a": ["b"]}], "default_fallbacks": ["z"]})
    assert table.fallbacks_of("other", Why.UNAVAILABLE) == ("z",)
    assert table.fallbacks_of("a", Why.UNAVAILABLE) == ("b", "z")


def test_a_chain_is_no_longer_than_allowed() -> None:
    line = [{str(i): [str(i + 1)]} for i in range(20)]
    assert len(of(litellm_settings={"fallbacks": line}).fallbacks_of("0", Why.UNAVAILABLE)) == MAX_FALLBACKS
    short = of(litellm_settings={"fallbacks": line}, router_settings={"max_fallbacks": 2})
    assert short.fallbacks_of("0", Why.UNAVAILABLE) == ("1", "2")


@given(TABLES, TABLES, st.lists(NAMES, max_size=3).map(tuple), NAMES, st.sampled_from(list(Why)))
def test_no_model_comes_twice_nor_again(
    general: dict[str, tuple[str, ...]],
    special: dict[str, tuple[str, ...]],
    default: tuple[str, ...],
    model: str,
    why: Why,
) -> None:
    chain = Fallbacks(general, special, {}, default).fallbacks_of(model, why)
    assert len(set(chain)) == len(chain) <= MAX_FALLBACKS
    assert model not in chain


def test_all_names_that_are_fallen_back_to_are_known() -> None:
    settings = {"fallbacks": [{"a": ["b"]}], "context_window_fallbacks": [{"a": ["c"]}], "default_fallbacks": ["d"]}
    assert of(litellm_settings=settings).names() == {"b", "c", "d"}


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (NoReplicaReady("x", retry_after_s=1), Why.UNAVAILABLE),
        (WorkerBroke("x"), Why.UNAVAILABLE),
        (WorkerTimeout("x"), Why.UNAVAILABLE),
        (NotFound("x", code="provider_not_found"), Why.UNAVAILABLE),
        (TooManyRequests("x", code="queue_full", retry_after_s=1), Why.QUEUE_FULL),
        (BadRequest("x", code="context_length_exceeded"), Why.CONTEXT_WINDOW),
        (BadRequest("x", code="content_policy_violation"), Why.CONTENT_POLICY),
        (BadRequest("x"), None),
        (ModelNotFound("x", []), None),
    ],
)
def test_an_error_says_whether_another_model_is_to_be_asked(error: ApiError, why: Why | None) -> None:
    assert why_of(error) is why


# -- rename --------------------------------------------------------------------------------------------------------


def test_all_but_the_model_stays_as_it_was_written() -> None:
    body = b'{ "model": "a", "seed": 12345678901234567890123, "x": 1.50, "y": [1,  2], "z": "\\u00e9" }'
    renamed = rename(body, 'b"ü')
    assert json.loads(renamed) == {**json.loads(body), "model": 'b"ü'}
    for piece in (b"12345678901234567890123", b"1.50", b"[1,  2]", b'"\\u00e9"'):
        assert piece in renamed


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)


@given(st.dictionaries(st.text(), JSON), st.text(min_size=1))
def test_any_object_is_the_same_but_for_its_model(fields: dict[str, Any], model: str) -> None:
    body = json.dumps({**fields, "model": "old"}).encode()
    assert json.loads(rename(body, model)) == {**fields, "model": model}


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null"])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        rename(body, "m")

"""What of a prompt is cached where."""

from hypothesis import given
from hypothesis import strategies as st

from relay.routing.prefix import BLOCK_BYTES, MAX_BLOCKS_OF_PROMPT, PrefixTree, chain_of
from tests.doubles import PATIENT

BLOCK = b"x" * BLOCK_BYTES
WORKERS = st.sampled_from("abc")
PROMPTS = st.lists(st.sampled_from([b"1" * BLOCK_BYTES, b"2" * BLOCK_BYTES]), max_size=5).map(b"".join)


def cached(tree: PrefixTree, prompt: bytes) -> dict[str, int]:
    return dict(tree.share(chain_of(prompt), len(prompt)).cached)


def test_only_whole_blocks_count() -> None:
    assert chain_of(BLOCK[:-1]) == []
    assert len(chain_of(BLOCK * 3 + b"y")) == 3
    assert len(chain_of(BLOCK * (MAX_BLOCKS_OF_PROMPT + 5))) == MAX_BLOCKS_OF_PROMPT


@PATIENT
@given(PROMPTS, PROMPTS)
def test_chains_are_equal_as_far_as_the_prompts_are(one: bytes, other: bytes) -> None:
    for mine, its, at in zip(chain_of(one), chain_of(other), range(99), strict=False):
        end = (at + 1) * BLOCK_BYTES
        assert (mine == its) == (one[:end] == other[:end])


@PATIENT
@given(st.lists(st.tuples(PROMPTS, WORKERS), max_size=20), PROMPTS)
def test_the_tree_knows_what_was_sent_where(sent: list[tuple[bytes, str]], prompt: bytes) -> None:
    tree = PrefixTree()
    expected: dict[str, int] = {}
    for content, worker_id in sent:
        tree.add(chain_of(content), worker_id)
        common = sum(mine == its for mine, its in zip(chain_of(content), chain_of(prompt), strict=False))
        if common:
            expected[worker_id] = max(expected.get(worker_id, 0), common * BLOCK_BYTES)
    share = tree.share(chain_of(prompt), len(prompt))
    assert share.cached == expected
    assert all(share.missing(worker_id) == len(prompt) - expected.get(worker_id, 0) for worker_id in "abc")


def test_a_worker_that_starts_anew_has_nothing() -> None:
    tree = PrefixTree()
    for worker_id in "ab":
        tree.add(chain_of(BLOCK * 3), worker_id)
    tree.forget("a")
    assert cached(tree, BLOCK * 3) == {"b": 3 * BLOCK_BYTES}
    tree.add(chain_of(BLOCK), "c")  # its bit may be one that was free
    assert cached(tree, BLOCK * 3) == {"b": 3 * BLOCK_BYTES, "c": BLOCK_BYTES}
    for worker_id in "bc":
        tree.forget(worker_id)
    assert len(tree) == 0


def test_the_tree_is_bounded_and_keeps_what_was_used_last() -> None:
    tree = PrefixTree(max_blocks=4)
    old, new = b"o" * BLOCK_BYTES * 3, b"n" * BLOCK_BYTES * 3
    tree.add(chain_of(old), "a")
    tree.add(chain_of(new), "a")
    assert len(tree) == 4
    assert cached(tree, new) == {"a": 3 * BLOCK_BYTES}
    assert cached(tree, old) == {"a": BLOCK_BYTES}  # its beginning, without which the rest is worth nothing


def test_a_worker_that_had_dropped_a_prompt_has_dropped_older_ones_too() -> None:
    tree = PrefixTree()
    older, dropped, newer = (letter * BLOCK_BYTES * 2 for letter in (b"o", b"d", b"n"))
    for prompt in (older, dropped, newer):
        for worker_id in "ab":
            tree.add(chain_of(prompt), worker_id)
    time = tree.time_of(chain_of(dropped), 2 * BLOCK_BYTES)
    tree.correct("a", time)
    assert cached(tree, older) == {"b": 2 * BLOCK_BYTES}
    assert cached(tree, dropped) == {"b": 2 * BLOCK_BYTES}
    assert cached(tree, newer) == {"a": 2 * BLOCK_BYTES, "b": 2 * BLOCK_BYTES}
    tree.add(chain_of(dropped), "a")  # now it has read it again
    assert cached(tree, dropped)["a"] == 2 * BLOCK_BYTES


def test_nobody_cached_it_at_no_time() -> None:
    assert PrefixTree().time_of(chain_of(BLOCK), 0) == 0

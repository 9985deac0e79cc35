"""What of a prompt is cached where."""

from hypothesis import given
from hypothesis import strategies as st

from relay.routing.prefix import BLOCK_BYTES, MAX_BLOCKS_OF_PROMPT, MAX_SPENT, PrefixTree, chain_of
from tests.doubles import PATIENT
from tests.steps import steps

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
    assert share.total == len(prompt)


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


@PATIENT
@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 12))
def test_the_tree_is_bounded_and_knows_what_was_sent_last(sent: list[int], generation: int) -> None:
    tree = PrefixTree(generation)
    prompts = [bytes([48 + number]) * BLOCK_BYTES * (1 + number % 3) for number in sent]
    for prompt in prompts:
        tree.add(chain_of(prompt), "a")
    assert len(tree) <= 2 * (generation + 2)
    room = generation
    for prompt in dict.fromkeys(reversed(prompts)):
        room -= len(prompt) // BLOCK_BYTES
        if room < 0:
            break
        assert cached(tree, prompt) == {"a": len(prompt)}


def test_what_is_not_sent_again_is_forgotten() -> None:
    tree = PrefixTree(generation=4)
    once, again = b"o" * BLOCK_BYTES, b"a" * BLOCK_BYTES
    for number in range(20):
        tree.add(chain_of(bytes([65 + number]) * BLOCK_BYTES), "a")
        tree.add(chain_of(again), "a")
        if not number:
            tree.add(chain_of(once), "a")
    assert cached(tree, once) == {}
    assert cached(tree, again) == {"a": BLOCK_BYTES}


def test_a_worker_that_starts_anew_has_nothing_of_either_generation() -> None:
    tree = PrefixTree(generation=2)
    older, newer = b"o" * BLOCK_BYTES * 2, b"n" * BLOCK_BYTES
    tree.add(chain_of(older), "a")
    tree.add(chain_of(newer), "a")
    assert (cached(tree, older), cached(tree, newer)) == ({"a": 2 * BLOCK_BYTES}, {"a": BLOCK_BYTES})
    tree.forget("a")
    tree.add(chain_of(b"x" * BLOCK_BYTES), "b")  # with the bit that was a's
    assert (cached(tree, older), cached(tree, newer)) == ({}, {})


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


def full_tree(workers: int, blocks: int) -> tuple[PrefixTree, list[int]]:
    """All of the workers, ``w0`` and so on, have a prompt."""
    tree, chain = PrefixTree(), list(chain_of(b"".join(b"%128d" % number for number in range(blocks))))
    for number in range(workers):
        tree.add(chain, f"w{number}")
    return tree, chain


def test_a_long_prompt_is_looked_up_once_for_all_who_have_dropped_something() -> None:
    cost = {}
    for workers in (2, 100):
        tree, chain = full_tree(workers, blocks=200)
        for number in range(workers):
            tree.correct(f"w{number}", number)
        tree.share(chain, 0)  # the first after a correction puts them in order
        cost[workers] = steps(lambda tree=tree, chain=chain: tree.share(chain, 0))  # type: ignore[misc]
    assert cost[100] < 2 * cost[2]


def test_what_each_has_is_told_once_for_each() -> None:
    tree, chain = full_tree(1, blocks=200)
    for number in range(1, 100):
        tree.add(chain[: 2 * number], f"w{number}")
    assert steps(lambda: tree.share(chain, 0)) < 20 * (100 + 200)
    assert tree.share(chain, 0).cached == {
        "w0": 200 * BLOCK_BYTES, **{f"w{number}": 2 * number * BLOCK_BYTES for number in range(1, 100)}
    }  # fmt: skip


def test_workers_that_go_at_once_are_forgotten_without_a_look_at_the_blocks() -> None:
    tree, _ = full_tree(MAX_SPENT + 10, blocks=1000)

    def forget_all() -> None:
        for number in range(1, MAX_SPENT + 10):
            tree.forget(f"w{number}")

    assert steps(forget_all) < 20 * (MAX_SPENT + 10)
    assert len(tree) == 1000  # w0 has them
    tree.forget("w0")
    assert len(tree) == 0


def test_workers_that_come_and_go_leave_nothing_in_the_blocks() -> None:
    tree, chain = full_tree(1, blocks=3)
    for number in range(10 * MAX_SPENT):
        tree.add(chain, f"other {number}")
        assert len(tree.share(chain, 0).cached) == 2
        tree.forget(f"other {number}")
        assert max(block.bit_length() for block in tree._young.values()) <= 48 + MAX_SPENT + 2
    assert cached(tree, b"".join(b"%128d" % number for number in range(3))) == {"w0": 3 * BLOCK_BYTES}


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["add", "correct", "forget"]), PROMPTS, st.integers(0, 2 * MAX_SPENT)), max_size=60
)


@PATIENT
@given(OPERATIONS, st.data())
def test_what_is_known_after_corrections_and_departures(
    operations: list[tuple[str, bytes, int]], data: st.DataObject
) -> None:
    tree = PrefixTree()
    sent: dict[tuple[int, bytes], int] = {}  # by worker and beginning of a prompt: when
    horizons: dict[int, int] = {}
    now = 0
    for what, prompt, worker in operations:
        beginnings = [prompt[:end] for end in range(BLOCK_BYTES, len(prompt) + 1, BLOCK_BYTES)]
        if what == "add":
            now += 1
            tree.add(chain_of(prompt), f"w{worker}")
            sent |= {(each, start): now for each, start in sent if start in beginnings}  # a block has one time
            sent |= {(worker, start): now for start in beginnings}
        elif what == "correct" and any(each == worker for each, _ in sent):
            time = data.draw(st.integers(1, now))
            tree.correct(f"w{worker}", time)
            horizons[worker] = max(horizons.get(worker, 0), time + 1)
        elif what == "forget":
            tree.forget(f"w{worker}")
            horizons.pop(worker, None)
            sent = {key: time for key, time in sent.items() if key[0] != worker}
    prompt = data.draw(PROMPTS)
    expected: dict[str, int] = {}
    for worker in {each for each, _ in sent}:
        for end in range(BLOCK_BYTES, len(prompt) + 1, BLOCK_BYTES):
            if sent.get((worker, prompt[:end]), -1) < horizons.get(worker, 0):
                break
            expected[f"w{worker}"] = end
    assert cached(tree, prompt) == expected

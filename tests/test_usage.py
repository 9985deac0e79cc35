"""What an answer says that it took."""

import pytest

from relay.usage import total_of, usage_of

OPENAI = b'"usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10'
DETAILS = b', "prompt_tokens_details": {"cached_tokens": 4}}}'


@pytest.mark.parametrize(
    ("before_last", "last", "prompt", "completion", "cached", "total"),
    [
        (b"", b'{"choices": [], ' + OPENAI + DETAILS, 7, 3, 4, 10),
        (b"", b'{"choices": [], ' + OPENAI + b"}}", 7, 3, None, 10),
        (b"data: {" + OPENAI + b"}}\n\n", b"data: [DONE]\n\n", 7, 3, None, 10),
        (b"data: {" + OPENAI[:30], OPENAI[30:] + b"}}\n\n", 7, 3, None, 10),
        (b"", b'{"usage":{"input_tokens":5,"output_tokens":2}}', 5, 2, None, 7),
        (b"", b'{"usage":{"prompt_tokens":5,"total_tokens":5}}', 5, None, None, 5),
        (b"", b'{"content": "\\"total_tokens\\": 99"}', None, None, None, None),
        (b"", b'{"total_tokens": "many"}', None, None, None, None),
        (b"", b"", None, None, None, None),
    ],
)
def test_usage_is_found_at_the_end(
    before_last: bytes, last: bytes, prompt: int | None, completion: int | None, cached: int | None, total: int | None
) -> None:
    assert usage_of([before_last, last]) == (prompt, completion, cached)
    assert total_of([before_last, last]) == total


def test_the_last_word_counts() -> None:
    later = b'{"usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}'
    assert total_of([b"data: {" + OPENAI + b"}}", later]) == 3
    assert usage_of([b"data: {" + OPENAI + b"}}", later]).prompt == 1

"""The model's name in a form that comes in pieces."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.multipart import MAX_MODEL_BYTES, ModelFinder, boundary_of
from tests.doubles import PATIENT
from utils.errors import ApiError, BadRequest, UnsupportedMediaType

BOUNDARY = b"b0undary"


def form(**fields: str) -> bytes:
    """Files stand last, as most clients put them."""
    request = httpx.Request(
        "POST", "http://x", data=fields, files={"file": ("a.wav", b"RIFF\r\n--b0undar\r\n\x00" * 50)},
        headers={"content-type": "multipart/form-data; boundary=b0undary"},
    )  # fmt: skip
    return request.read()


@PATIENT
@given(st.lists(st.integers(0, 1200), max_size=5).map(sorted), st.booleans())
def test_any_split_gives_the_same_name(cuts: list[int], is_first: bool) -> None:
    fields = {"language": "en", "model": "org/whisper"}
    body = form(**(dict(reversed(fields.items())) if is_first else fields))
    finder = ModelFinder(BOUNDARY)
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        finder.feed(body[start:end])
    assert finder.model == "org/whisper"


def test_a_file_of_that_name_is_not_the_model() -> None:
    request = httpx.Request(
        "POST", "http://x", files={"model": ("model", b"evil")},
        headers={"content-type": "multipart/form-data; boundary=b0undary"},
    )  # fmt: skip
    finder = ModelFinder(BOUNDARY)
    finder.feed(request.read())
    assert finder.model == ""


def test_the_first_of_two_models_counts_as_at_the_worker() -> None:
    finder = ModelFinder(BOUNDARY)
    part = b'--b0undary\r\ncontent-disposition: form-data; name="model"\r\n\r\n%b\r\n'
    finder.feed(part % b"one" + part % b"two" + b"--b0undary--\r\n")
    assert finder.model == "one"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"no form at all", "broken"),
        (form(model=""), "model is missing"),
        (form(model="x" * (MAX_MODEL_BYTES + 1)), "longer than"),
    ],
)
def test_a_bad_form_is_refused_in_words(body: bytes, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        ModelFinder(BOUNDARY).feed(body)


@pytest.mark.parametrize(
    ("content_type", "error"),
    [
        (b"", UnsupportedMediaType),
        (b"application/json", UnsupportedMediaType),
        (b"multipart/form-data", BadRequest),
        (b"multipart/form-data; boundary=" + b"x" * 71, BadRequest),
    ],
)
def test_a_content_type_that_is_none_is_refused(content_type: bytes, error: type[ApiError]) -> None:
    with pytest.raises(error):
        boundary_of({b"content-type": content_type})


@pytest.mark.parametrize("written", [b"boundary=b0undary", b'charset=x; boundary="b0undary"'])
def test_the_boundary_is_read_however_it_is_written(written: bytes) -> None:
    assert boundary_of({b"content-type": b"multipart/form-data; " + written}) == BOUNDARY

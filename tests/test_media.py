"""What of a request's media may be loaded, and that none of it is overlooked."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles import PATIENT
from utils.errors import BadRequest
from worker.media import MAX_VALUES, MEDIA_KEYS, MediaPolicy, check_bytes, check_media

NOTHING = MediaPolicy()
HOSTS = MediaPolicy(frozenset({"img.example", "10.0.0.7", "::1"}))
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
DATA = f"data:image/png;base64,{PIXEL}"
BAD = "http://10.0.0.1/latest/meta-data"


def chat(part: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": BAD}, part]}]}


def messages(block: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [block]}]}]}


def refused(body: Any, policy: MediaPolicy = NOTHING) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        check_bytes(body if isinstance(body, bytes) else json.dumps(body).encode(), policy)
    return caught.value


def is_taken(source: str, policy: MediaPolicy = NOTHING) -> bool:
    try:
        check_media({"image_data": source}, policy)
    except BadRequest:
        return False
    return True


# -- where media stand in a request --------------------------------------------------------------------------------

SHAPES = [
    (chat({"type": "image_url", "image_url": {"url": BAD}}), "messages[0].content[1].image_url.url"),
    (chat({"type": "image_url", "image_url": BAD}), "messages[0].content[1].image_url"),
    (chat({"image_url": {"url": BAD}, "uuid": "u"}), "messages[0].content[1].image_url.url"),
    (chat({"type": "audio_url", "audio_url": {"url": BAD}}), "messages[0].content[1].audio_url.url"),
    (chat({"type": "video_url", "video_url": {"url": BAD}}), "messages[0].content[1].video_url.url"),
    (chat({"type": "input_audio", "input_audio": {"url": BAD}}), "messages[0].content[1].input_audio.url"),
    (chat({"type": "file", "file": {"file_data": BAD}}), "messages[0].content[1].file.file_data"),
    (chat({"type": "input_file", "file_url": BAD}), "messages[0].content[1].file_url"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": BAD}]}]},
     "input[0].content[0].image_url"),
    ({"input": [{"type": "computer_call_output", "output": {"image_url": BAD}}]}, "input[0].output.image_url"),
    (messages({"type": "image", "source": {"type": "url", "url": BAD}}),
     "messages[0].content[0].content[0].source.url"),
    ({"text": "t", "image_data": BAD}, "image_data"),
    ({"text": ["a", "b"], "image_data": [[DATA, [BAD]], [DATA]]}, "image_data[0][1][0]"),
    ({"audio_data": [{"url": BAD}]}, "audio_data[0].url"),
    ({"video_data": [None, BAD]}, "video_data[1]"),
    ({"instances": [{"text": "t", "image_data": BAD}]}, "instances[0].image_data"),
    ({"input": [{"text": "t", "image": BAD}]}, "input[0].image"),
    ({"input": [{"video": BAD}]}, "input[0].video"),
    ({"texts": [], "images": [DATA, BAD]}, "images[1]"),
    ({"media": {"videos": [BAD]}}, "media.videos[0]"),
    ({"messages": [{"role": "user", "content": "look", "images": [BAD]}]}, "messages[0].images[0]"),
    ({"query": "q", "documents": {"content": [{"type": "image_url", "image_url": {"url": BAD}}]}},
     "documents.content[0].image_url.url"),
    ({"data_1": "t", "data_2": [{"content": [{"type": "image_url", "image_url": {"url": BAD}}]}]},
     "data_2[0].content[0].image_url.url"),
    ([{"image_url": BAD}], "[0].image_url"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param"), SHAPES, ids=[param for _, param in SHAPES])
def test_an_address_is_found_in_every_shape_of_request_and_named(body: Any, param: str) -> None:
    error = refused(body)
    assert error.param == param
    assert error.message.startswith(f"{param}: ")
    assert "data: URI" in error.message
    assert "10.0.0.1" in error.message
    check_bytes(json.dumps(body).replace(BAD, DATA).encode(), NOTHING)


HARMLESS = [
    chat({"type": "text", "text": "http://example.com/a.png and file:///etc/passwd"}),
    chat({"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}),
    chat({"type": "image_embeds", "image_embeds": BAD}),
    {"prompt": "an \"image_url\": http://10.0.0.1"},
    {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}], "modalities": ["audio"], "audio": {"voice": "x"}},
    {"tools": [{"function": {"parameters": {"properties": {"image_url": {"default": BAD, "url": BAD}}}}}]},
    {"metadata": {"image": "photo.png"}, "response_format": {"json_schema": {"example": {"image": BAD}}}},
    {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": {"image_url": BAD}}}]}]},
    {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": {"image_url": BAD}}]}]},
    {"messages": [{"content": [{"type": "search_result", "source": BAD, "content": []}]}]},
    {"input": [{"content": [{"type": "output_text", "annotations": [{"type": "url_citation", "url": BAD}]}]}]},
    {"image_url": None, "image_data": [[None]], "video": 3},
    "image",
    7,
]  # fmt: skip


@pytest.mark.parametrize("body", HARMLESS, ids=lambda body: str(body)[:60])
def test_what_no_engine_loads_is_left_alone(body: Any) -> None:
    check_bytes(json.dumps(body).encode(), NOTHING)
    check_bytes(json.dumps(body).encode("utf-16"), NOTHING)


def test_tools_are_left_alone_at_their_own_place_only() -> None:
    refused({"messages": [{"content": [{"tools": {"image_url": BAD}}]}]})
    refused({"type": "tool_use", "input": [{"content": [{"image_url": BAD}]}]})


@pytest.mark.parametrize(
    "body",
    [
        b'{"\\u0069mage_url": "http://h/x"}',
        b'{"image\\u005Furl": "http://h/x"}',
        b'{"image_url": "http:\\/\\/h/x"}',
        b'{"image_url": "\\u0068ttp://h/x"}',
        b'{"image_url": "http://h/x", "image_url": "data:image/png;base64,AA"}',
        b'{"image_url": "data:image/png;base64,AA", "image_url": "http://h/x"}',
        b'{"tools": 1, "a": {"image_url": {"url": "http://h/x", "url": ""}}}',
        b'\xef\xbb\xbf{"image_url": "http://h/x"}',
        '{"image_url": "http://h/x"}'.encode("utf-16"),
        '{"image_url": "http://h/x"}'.encode("utf-16-be"),
        '{"image_url": "http://h/x"}'.encode("utf-32"),
        b'{"n": NaN, "image_url": "http://h/x"}',
        b'{"image_url": "http://h/x"',
        b'image_url={"image_url": "http://h/x"}',
        b'{"image_url": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"image_url": "\xff"}',
    ],
)
def test_no_way_of_writing_json_hides_an_address(body: bytes) -> None:
    refused(body)


def test_a_body_that_would_hold_up_everybody_else_is_refused() -> None:
    assert "send fewer" in refused({"image": [[]] * (MAX_VALUES + 1)}).message
    check_bytes(json.dumps({"input_ids": [1] * (MAX_VALUES + 1), "image_data": DATA}).encode(), NOTHING)


WORDS = st.text(max_size=5).filter(lambda word: word not in MEDIA_KEYS | {"url", "source"})
OTHERS = st.recursive(
    st.none() | st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)
BARE = st.lists(st.sampled_from(["list", "url"]), max_size=3)
STEPS = st.lists(st.sampled_from(["list", "messages", "input", "data_1", "source"]))


def wrapped(value: Any, steps: list[str], others: Any) -> Any:
    for step in steps:
        value = [others, value] if step == "list" else {"other": others, step: value}
    return value


@PATIENT
@given(
    st.sampled_from(sorted(MEDIA_KEYS)),
    BARE,
    STEPS,
    OTHERS,
)
def test_an_address_is_found_however_it_is_nested(key: str, within: list[str], around: list[str], others: Any) -> None:
    media = BAD
    for step in within:
        media = [others, media] if step == "list" else {"detail": others, "url": media}  # type: ignore[assignment]
    body = wrapped({"other": others, key: media}, around, others)
    assert refused(body).message


# -- what may be loaded --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [DATA, "", PIXEL, PIXEL.rstrip("=") * 200, "data:;base64,AA",
                                    "data:audio/x-wav;rate=8;base64,AAAA"])  # fmt: skip
def test_media_within_the_request_are_taken(source: str) -> None:
    assert is_taken(source)


@pytest.mark.parametrize(
    "source",
    [
        "http://img.example/x.png", "https://img.example:8443/x?y=http://other#z", "https://IMG.example",
        "http://10.0.0.7/", "http://[::1]:80/x",
    ],
)  # fmt: skip
def test_an_allowed_host_is_taken(source: str) -> None:
    assert is_taken(source, HOSTS)
    assert not is_taken(source)


@pytest.mark.parametrize(
    "source",
    [
        BAD, "http://evil/img.example", "http://evil.img.example/", "http://img.example.evil/", "http://img.example./x",
        "http://img.example@evil/", "http://user:pass@img.example/", "http://evil#@img.example/",
        "http://evil\\@img.example/", "http://img.example\\@evil/", "http://img.example:80@evil/",
        "http://img.example:/x", "http:/img.example/x", "http:img.example", "http://", "http:///x",
        " http://img.example/", "\thttp://img.example/", "http://img.example/\n", "http://img.example /",
        "HTTP://img.example/", "hTTps://img.example/", "//img.example/x", "ftp://img.example/x", "gopher://img.example",
        "http://img.example\x00.evil/", "http://ímg.example/", "http://[::2]/", "http://[::1/", "http://167772167/",
        "s3://bucket/x", "concat:/etc/passwd", "tcp://10.0.0.7:1", "pipe:0", "x:" + "A" * 5000, "javascript:1",
        "data:image/png;base64", "data:" + "x" * 300 + ",AA", "data:video/m3u8;base64,AA", "data:image/svg+xml,<svg>",
        " data:image/png;base64,AA", "not base64!", "photo.png", "../photo.png", "~/photo.png", "A\0",
    ],
)  # fmt: skip
def test_anything_else_is_refused(source: str) -> None:
    assert not is_taken(source, HOSTS)


def test_a_message_says_what_to_do_and_repeats_little() -> None:
    assert "--allowed-media-domains" in refused({"image_url": "http://h/x"}).message
    assert "--allowed-local-media-path" in refused({"image_url": "file:///etc/passwd"}).message
    assert len(refused({"image_url": "http://h h" + "x" * 9999}).message) < 300


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to allow, with links out of it and beside it one whose name begins alike."""
    allowed = tmp_path.resolve() / "media"
    (allowed / "a b").mkdir(parents=True)
    (allowed / "a b" / "x.png").touch()
    (tmp_path / "media-private").mkdir()
    (allowed / "link.png").symlink_to("/etc/passwd")
    (allowed / "here.png").symlink_to(allowed / "a b" / "x.png")
    (allowed / "up").symlink_to(tmp_path)
    return allowed


@pytest.mark.parametrize("path", ["{}/a b/x.png", "file://{}/a%20b/x.png", "{}/here.png", "{}/none.png",
                                  "{}/a b/../here.png", "file://{}/here.png"])  # fmt: skip
def test_a_file_below_the_allowed_folder_is_taken(path: str, folder: Path) -> None:
    assert is_taken(path.format(folder), MediaPolicy(folder=str(folder)))
    assert not is_taken(path.format(folder))


@pytest.mark.parametrize(
    "path",
    [
        "{}", "{}/", "{}/..", "{}/link.png", "{}/up/other.png", "{}/../media-private/x", "{}-private/x", "/etc/passwd",
        "file://{}/link.png", "file://{}/../x", "file://{}/%2e%2e/x", "file://{}/%2E%2E%2Fx", "file:///etc/passwd",
        "file://localhost{}/here.png", "file://evil{}/here.png", "file:{}/here.png", "file:/{}/here.png?x=/../..",
        "file://{}/here.png#x", "FILE://{}/here.png", "File:///etc/passwd", "file://{}/here%00.png", "{}/\0",
        "//{}/here.png/../../..", " {}/here.png", "file://{}/a b/x.png", "./here.png", "file://~/x", "file://",
        "~{}/here.png", "/proc/self/environ", "{}/up/../../etc/passwd",
    ],
)  # fmt: skip
def test_a_file_elsewhere_is_refused(path: str, folder: Path) -> None:
    assert not is_taken(path.format(folder), MediaPolicy(folder=str(folder)))


def test_a_word_that_could_be_base64_is_refused_where_it_names_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_taken("keys/prod")
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "prod").touch()
    assert not is_taken("keys/prod")
    assert not is_taken("keys")


@pytest.mark.parametrize("source", ["DATA:image/png;base64,AA", "Data:,x"])
def test_one_spelling_of_data_is_taken(source: str) -> None:
    assert not is_taken(source)


def test_a_body_with_too_much_to_look_at_is_refused(tmp_path: Path) -> None:
    policy = MediaPolicy(folder=str(tmp_path))
    many_files = {"image_url": [f"file://{tmp_path}/{'a/' * 100}x"] * 2000}
    many_pairs = {"image": [{str(number): 1 for number in range(100)}] * 5000}
    long_path = {"image_url": f"file://{tmp_path}/{'a/' * 5000}x"}
    for body, words in (
        (many_files, "more than 1000 images"),
        (many_pairs, "250000 values"),
        (long_path, "may not be read"),
    ):
        with pytest.raises(BadRequest, match=words):
            check_bytes(json.dumps(body).encode(), policy)

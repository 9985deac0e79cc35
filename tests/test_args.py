"""The worker's command line."""

import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.args import (
    TOKEN_VARIABLE,
    WorkerArguments,
    canonical,
    create_parser,
    default_worker_id,
    parse_worker_arguments,
)
from tests.doubles import PATIENT
from utils.errors import ConfigError


def parse(*argv: str, **environ: str) -> WorkerArguments:
    return parse_worker_arguments(argv, environ)


def refusal(*argv: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(*argv, **environ)
    return str(caught.value)


# -- what is ours --------------------------------------------------------------------------------------------------


def test_a_model_is_enough() -> None:
    arguments = parse("--model", "/models/qwen-7b")
    assert arguments.model_name == "qwen-7b"
    assert (arguments.backend, arguments.host, arguments.port) == ("vllm", "127.0.0.1", 8001)
    assert arguments.gateway_address == ""
    assert arguments.heartbeat_interval == 30
    assert arguments.log_streaming
    assert arguments.engine_argv == ()


def test_short_forms_are_the_long_ones() -> None:
    short = parse(
        "--model-path", "m", "-be", "fake", "-ga", "127.0.0.1:4000", "-n", "a", "b", "--hi", "3", "--ls", "no"
    )
    long = parse("--model", "m", "--backend", "fake", "--gateway-address", "http://127.0.0.1:4000",
                 "--served-model-name", "a", "b", "--heartbeat-interval", "3", "--log-streaming", "false")  # fmt: skip
    assert short == long
    assert long.names == ("a", "b")
    assert (long.backend, long.heartbeat_interval, long.log_streaming) == ("fake", 3, False)
    assert long.gateway_address == "http://127.0.0.1:4000"


def test_snake_case_is_the_same_as_kebab_case() -> None:
    snake = parse("--model_path", "m", "--model_name=a_b", "--heartbeat_interval", "3", "--no_warmup")
    assert snake == parse("--model-path", "m", "--model-name=a_b", "--heartbeat-interval", "3", "--no-warmup")
    assert (snake.model_name, snake.warmup) == ("a_b", False)


@pytest.mark.parametrize(("words", "streams"), [
    ([], True), (["--ls"], True), (["--ls", "true"], True), (["--ls=1"], True), (["--log-streaming", "FALSE"], False),
    (["--ls", "off"], False), (["--ls", "--enforce-eager"], True),
])  # fmt: skip
def test_log_streaming_is_a_switch_with_or_without_a_word(words: list[str], streams: bool) -> None:
    assert parse("--model", "m", *words).log_streaming is streams


@pytest.mark.parametrize(
    ("model", "name"), [("org/model", "model"), ("/models/m/", "m"), ("m", "m"), ("./m.gguf", "m.gguf")]
)
def test_a_model_is_named_by_the_end_of_its_path(model: str, name: str) -> None:
    assert parse("--model", model).model_name == name


def test_the_id_is_the_same_after_a_restart() -> None:
    arguments = parse("--model", "org/m", "--port", "8005")
    assert arguments.worker_id == parse("--model", "org/m", "--port", "8005").worker_id
    assert arguments.worker_id == f"m-{socket.gethostname()}-8005"


def test_an_id_holds_only_what_ids_may_hold() -> None:
    assert default_worker_id("org/模型 x", 1) == f"org----x-{socket.gethostname()}-1"


def test_workers_on_free_ports_do_not_share_an_id() -> None:
    assert not default_worker_id("m", 0).endswith("-0")


def test_the_token_comes_from_the_environment_alone() -> None:
    assert parse("--model", "m", **{TOKEN_VARIABLE: "s3cret\n"}).token == "s3cret"
    assert parse("--model", "m").token == ""
    assert "--token" not in create_parser().format_help()


def test_help_says_every_default_that_there_is() -> None:
    text = create_parser().format_help()
    assert "default: 8001" in text
    assert "default: None" not in text


# -- media ---------------------------------------------------------------------------------------------------------


def test_without_a_word_no_media_are_fetched_or_read() -> None:
    arguments = parse("--model", "m")
    assert (arguments.allowed_media_domains, arguments.allowed_local_media_path) == ((), "")
    assert parse("--model", "m", "--allowed-media-domains") == arguments
    assert arguments.max_body_bytes == 32 * 1024 * 1024


def test_hosts_are_kept_as_addresses_are_compared_with_them() -> None:
    words = ["--allowed-media-domains", "Img.Example", "10.0.0.7", "[::1]", "localhost", "--max-body-mb", "0.5", "-x"]
    arguments = parse("--model", "m", *words)
    assert arguments.allowed_media_domains == ("img.example", "10.0.0.7", "::1", "localhost")
    assert arguments.max_body_bytes == 512 * 1024
    assert arguments.engine_argv == ("-x",)


@pytest.mark.parametrize("host", ["*", "*.example", "http://a.b", "a.b:80", "a.b/", "a b", "", ".", "a..b", "[::g]",
                                  "u@a.b", "bücher.example"])  # fmt: skip
def test_what_is_no_host_name_is_refused(host: str) -> None:
    assert "--allowed-media-domains" in refusal("--model", "m", "--allowed-media-domains", "ok", host)


def test_the_folder_of_media_is_resolved_and_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "media")
    (tmp_path / "file").touch()
    arguments = parse("--model", "m", "--allowed-local-media-path", str(tmp_path / "link"))
    assert arguments.allowed_local_media_path == str((tmp_path / "media").resolve())
    for name in ("none", "file"):
        said = refusal("--model", "m", "--allowed-local-media-path", str(tmp_path / name))
        assert "--allowed-local-media-path" in said
        assert "no such folder" in said


# -- where the gateway finds the worker ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "host", "advertised"),
    [
        ([], "127.0.0.1", "127.0.0.1"),
        (["--host", "10.0.0.5"], "10.0.0.5", "10.0.0.5"),
        (["-ga", "127.0.0.1:4000"], "127.0.0.1", "127.0.0.1"),
        (["-ga", "127.0.0.1:4000", "--host", "0.0.0.0"], "0.0.0.0", "127.0.0.1"),
        (["-ga", "127.0.0.1:4000", "--host", "10.0.0.5"], "10.0.0.5", "10.0.0.5"),
        (["-ga", "127.0.0.1:4000", "--advertise-host", "gpu7"], "127.0.0.1", "gpu7"),
        (["-ga", "http://[::1]:4000", "--host", "::"], "::", "::1"),
    ],
)
def test_a_worker_listens_where_its_gateway_can_find_it(words: list[str], host: str, advertised: str) -> None:
    arguments = parse("--model", "m", *words)
    assert (arguments.host, arguments.advertise_host) == (host, advertised)


@pytest.mark.parametrize("address", ["127.0.0.1:4000", "http://127.0.0.1:4000", "http://127.0.0.1:4000/"])
def test_the_gateways_address_may_be_written_short(address: str) -> None:
    assert parse("--model", "m", "-ga", address).gateway_address == "http://127.0.0.1:4000"


@pytest.mark.parametrize("address", [":4000", "ftp://127.0.0.1", "http://", "127.0.0.1:99999", "127.0.0.1:x", "[::1"])
def test_what_is_no_address_is_refused_with_an_example(address: str) -> None:
    assert "http://HOST:4000" in refusal("--model", "m", "-ga", address)


@pytest.mark.parametrize("host", ["a" * 64, "..", ".invalid"])
def test_a_host_name_that_cannot_be_is_refused(host: str) -> None:
    assert "--advertise-host" in refusal("--model", "m", "-ga", f"http://{host}:4000")


# -- what is wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "--model is missing"),
        (["--model"], "--model"),
        (["--model", "m", "-n"], "--model-name"),
        (["--model", "m", "--port", "http"], "--port"),
        (["--model", "m", "--port", "65536"], "--port"),
        (["--model", "m", "--hi", "often"], "--heartbeat-interval"),
        (["--model", "m", "--hi", "0.01"], "--heartbeat-interval"),
        (["--model", "m", "--hi", "nan"], "--heartbeat-interval"),
        (["--model", "m", "--drain-timeout", "-5"], "--drain-timeout"),
        (["--model", "m", "--progress-timeout", "inf"], "--progress-timeout"),
        (["--model", "m", "--ls", "maybe"], "--log-streaming"),
        (["--model", "m", "--max-body-mb", "0"], "--max-body-mb"),
        (["--model", "m", "--warmup=maybe"], "--warmup"),
        (["--model", "/models/my model"], "--model-name"),
        (["--model", "m", "-n", ""], "--model-name"),
        (["--model", "m", "--worker-id", "a/b"], "--worker-id"),
        (["--model", "m", "--worker-id", "a\n"], "--worker-id"),
        (["--model", "m", "--advertise-host", "[::1]"], "--advertise-host"),
    ],
)
def test_a_wrong_argument_is_named(words: list[str], named: str) -> None:
    assert named in refusal(*words)


def test_a_token_that_no_header_can_carry_is_refused_and_not_repeated() -> None:
    words = refusal("--model", "m", **{TOKEN_VARIABLE: "schlüssel wort"})
    assert TOKEN_VARIABLE in words
    assert "schlüssel" not in words


VALUES = [
    "m",
    "",
    "-1",
    "--port",
    "a b",
    "8005",
    "127.0.0.1:4000",
    ":x",
    "[::1",
    "http://",
    "\0",
    "模型",
    "=",
    "--",
    "-",
]
OPTIONS = sorted(option for action in create_parser()._actions for option in action.option_strings)
WORDS = st.sampled_from([*VALUES, *(option for option in OPTIONS if option not in ("-h", "--help"))])


@PATIENT
@given(st.lists(st.one_of(WORDS, st.builds("{}={}".format, WORDS, WORDS)), max_size=8))
def test_no_command_line_ends_in_anything_but_an_answer_or_a_clear_error(argv: list[str]) -> None:
    try:
        parse_worker_arguments(["--model", "m", *argv], {})
    except ConfigError as error:
        assert str(error)


# -- what is the engine's ------------------------------------------------------------------------------------------

OWN = [["--port", "8005"], ["-n", "a", "b"], ["--hi=3"], ["--ls"], ["--log_streaming", "false"], ["--no-warmup"]]
ENGINE = [["--enforce-eager"], ["--max-model-len", "4096"], ["--max_num_seqs=8"], ["-tp", "2"], ["-O3"],
          ["--seed", "-1"], ["--hf-overrides", '{"a": "--b"}'], ["--lora-modules", "a=/x", "b=/y"],
          ["--no-enable-prefix-caching"], ["--trust-remote-code", "--dtype", "half"], ["--portable", "1"],
          ["--modelx"]]  # fmt: skip
BLOCKS = st.lists(st.one_of(st.tuples(st.just(True), st.sampled_from(ENGINE)),
                            st.tuples(st.just(False), st.sampled_from(OWN))), max_size=10)  # fmt: skip


def words_of(blocks: Sequence[tuple[bool, list[str]]], engine: bool) -> list[str]:
    return [word for is_engine, block in blocks if is_engine is engine for word in block]


@PATIENT
@given(BLOCKS)
def test_the_engines_arguments_are_untouched_and_in_order_wherever_ours_stand(
    blocks: list[tuple[bool, list[str]]],
) -> None:
    mixed = parse("--model", "m", *(word for _, block in blocks for word in block))
    assert mixed.engine_argv == tuple(words_of(blocks, engine=True))
    apart = parse("--model", "m", *words_of(blocks, engine=False), *words_of(blocks, engine=True))
    assert mixed == apart


@PATIENT
@given(
    st.builds("{}{}".format, st.sampled_from(["-", "--"]), st.text()).filter(
        lambda word: canonical(word.partition("=")[0]) not in OPTIONS
    )
)
def test_a_word_that_is_not_ours_is_the_engines_letter_for_letter(word: str) -> None:
    assert parse("--model", "m", word).engine_argv == (word,)


def test_an_abbreviation_of_ours_is_the_engines() -> None:
    assert parse("--model", "m", "--heartbeat", "3").engine_argv == ("--heartbeat", "3")

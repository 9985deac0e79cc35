"""The clients that people have, as they are: openai, anthropic and LangChain, through the gateway to every backend."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.support import ANSWER_TIMEOUT_S, MODEL_NAME, QUESTION, EngineWorker
from tests.support import GatewayClient

if TYPE_CHECKING:  # they take seconds to import, which whoever only looks for tests need not wait for
    import anthropic
    import openai
    from langchain_openai import ChatOpenAI

pytestmark = pytest.mark.engine  # the fake one too: what is tested takes seconds to import

GREEDY: dict[str, Any] = {"model": MODEL_NAME, "temperature": 0}
GREEDY_MESSAGE: dict[str, Any] = {"model": MODEL_NAME, "extra_body": {"temperature": 0}}
"""Anthropic's client no longer knows a temperature; the engines do."""
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
CITY = {"title": "City", "description": "A city.", "type": "object", "required": ["city"],
        "properties": {"city": {"enum": ["Paris", "Rome"]}}, "additionalProperties": False}  # fmt: skip
PIRATE = "You are a pirate. Answer as pirates speak, and at length."


@pytest.fixture
def asked(front: GatewayClient, worker: EngineWorker) -> Iterator["openai.OpenAI"]:
    """OpenAI's client of a gateway with a ready worker; nothing is tried again, so that no failure hides."""
    import openai

    transport = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key="none", timeout=ANSWER_TIMEOUT_S, max_retries=0,
                       http_client=transport) as client:  # fmt: skip
        yield client


@pytest.fixture
def claude(front: GatewayClient, worker: EngineWorker) -> Iterator["anthropic.Anthropic"]:
    """Anthropic's, which adds ``/v1`` itself."""
    import anthropic

    transport = anthropic.DefaultHttpxClient(trust_env=False)
    with anthropic.Anthropic(base_url=front.url, api_key="none", timeout=ANSWER_TIMEOUT_S, max_retries=0,
                             http_client=transport) as client:  # fmt: skip
        yield client


@pytest.fixture
def chain(front: GatewayClient, worker: EngineWorker) -> Iterator["ChatOpenAI"]:
    """LangChain's model, which reports to nobody."""
    import openai
    from langchain_openai import ChatOpenAI
    from langsmith import tracing_context

    with openai.DefaultHttpxClient(trust_env=False) as transport, tracing_context(enabled=False):
        yield ChatOpenAI(base_url=f"{front.url}/v1", api_key="none", model=MODEL_NAME, temperature=0, max_tokens=32,
                         timeout=ANSWER_TIMEOUT_S, max_retries=0, http_client=transport)  # fmt: skip


def knows(worker: EngineWorker, text: str | None) -> bool:
    """The demo model knows the answer; the fake engine knows nothing, but always says something."""
    return "Paris" in (text or "") if worker.backend != "fake" else bool(text)


# -- openai --------------------------------------------------------------------------------------------------------


def test_openai_chats(asked: "openai.OpenAI", worker: EngineWorker) -> None:
    answer = asked.chat.completions.create(messages=MESSAGES, max_tokens=32, **GREEDY)
    assert knows(worker, answer.choices[0].message.content)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_openai_streams_a_chat_and_its_usage(asked: "openai.OpenAI", worker: EngineWorker) -> None:
    whole = asked.chat.completions.create(messages=MESSAGES, max_tokens=32, **GREEDY)
    with asked.chat.completions.stream(
        messages=MESSAGES, max_tokens=32, stream_options={"include_usage": True}, **GREEDY
    ) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.content == whole.choices[0].message.content
    assert streamed.usage is not None is not whole.usage
    assert streamed.usage.completion_tokens == whole.usage.completion_tokens


def test_openai_asks_for_responses(asked: "openai.OpenAI", worker: EngineWorker) -> None:
    answer = asked.responses.create(input=QUESTION, max_output_tokens=32, **GREEDY)
    assert answer.status == "completed"
    assert knows(worker, answer.output_text)
    assert answer.usage is not None
    assert answer.usage.output_tokens > 0


def test_openai_streams_a_response(asked: "openai.OpenAI", worker: EngineWorker) -> None:
    whole = asked.responses.create(input=QUESTION, max_output_tokens=32, **GREEDY)
    with asked.responses.stream(input=QUESTION, max_output_tokens=32, **GREEDY) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(pieces) == whole.output_text == final.output_text
    assert knows(worker, final.output_text)


def test_openai_lists_the_models(asked: "openai.OpenAI") -> None:
    assert MODEL_NAME in [model.id for model in asked.models.list()]
    assert asked.models.retrieve(MODEL_NAME).id == MODEL_NAME


def test_openai_tells_its_user_what_the_gateway_says(asked: "openai.OpenAI", worker: EngineWorker) -> None:
    import openai

    with pytest.raises(openai.NotFoundError, match=rf"The models here are: {MODEL_NAME}") as missing:
        asked.chat.completions.create(model="no-such-model", messages=MESSAGES)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError, match="'no-such-model' does not exist"):
        asked.models.retrieve("no-such-model")
    if worker.backend != "fake":  # which embeds as well
        with pytest.raises(openai.BadRequestError, match="ask /v1/chat/completions") as refused:
            asked.embeddings.create(model=MODEL_NAME, input=QUESTION)
        assert refused.value.code == "unsupported_task"


# -- anthropic -----------------------------------------------------------------------------------------------------


def test_anthropic_sends_a_message(claude: "anthropic.Anthropic", worker: EngineWorker) -> None:
    answer = claude.messages.create(messages=MESSAGES, max_tokens=32, **GREEDY_MESSAGE)
    assert (answer.role, answer.stop_reason) == ("assistant", "end_turn")
    assert knows(worker, text_of(answer))
    assert answer.usage.input_tokens > 0 < answer.usage.output_tokens


def test_anthropic_streams_a_message(claude: "anthropic.Anthropic", worker: EngineWorker) -> None:
    whole = claude.messages.create(messages=MESSAGES, max_tokens=32, **GREEDY_MESSAGE)
    with claude.messages.stream(messages=MESSAGES, max_tokens=32, **GREEDY_MESSAGE) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(pieces) > 1
    assert "".join(pieces) == text_of(final) == text_of(whole)
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_anthropics_system_prompt_counts(claude: "anthropic.Anthropic") -> None:
    """A longer one against a shorter: without any, the demo model's template brings its own."""
    short, long = (
        claude.messages.create(messages=MESSAGES, max_tokens=8, system=system, **GREEDY_MESSAGE)
        for system in ("Be brief.", PIRATE)
    )
    assert long.usage.input_tokens > short.usage.input_tokens
    assert text_of(long)


def test_anthropic_tells_its_user_what_the_gateway_says(claude: "anthropic.Anthropic") -> None:
    import anthropic

    with pytest.raises(anthropic.NotFoundError, match=rf"The models here are: {MODEL_NAME}"):
        claude.messages.create(model="no-such-model", messages=MESSAGES, max_tokens=8)


def text_of(message: "anthropic.types.Message") -> str:
    return "".join(block.text for block in message.content if block.type == "text")


# -- LangChain -----------------------------------------------------------------------------------------------------


def test_langchain_asks(chain: "ChatOpenAI", worker: EngineWorker) -> None:
    answer = chain.invoke(QUESTION)
    assert knows(worker, str(answer.text))
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0


def test_langchain_streams(chain: "ChatOpenAI", worker: EngineWorker) -> None:
    from langchain_core.messages import AIMessageChunk

    whole: AIMessageChunk | None = None
    for piece in chain.stream(QUESTION, stream_usage=True):
        assert isinstance(piece, AIMessageChunk)
        whole = piece if whole is None else whole + piece
    assert whole is not None
    assert str(whole.text) == str(chain.invoke(QUESTION).text)
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0


# SGLang's answers carry lists in `metadata` (its weights' versions), where OpenAI's have words alone: pydantic says so
# when LangChain copies the answer, which is right all the same.
@pytest.mark.filterwarnings(r"ignore:(?s)Pydantic serializer warnings.*field_name='metadata':UserWarning")
def test_langchain_keeps_an_answer_to_a_schema(chain: "ChatOpenAI", worker: EngineWorker) -> None:
    if worker.backend == "fake":
        pytest.skip("the fake engine knows no schema")
    told = chain.with_structured_output(CITY, method="json_schema", strict=True).invoke(QUESTION)
    assert isinstance(told, dict)
    assert told["city"] in ("Paris", "Rome")

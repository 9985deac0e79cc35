"""Images in chat requests, on vLLM, with a tiny LLaVA."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends import cpu_shims
from tests.engine.models import IMAGE, IMAGE_TOKENS
from tests.engine.support import MODEL_NAME, EngineWorker, engine_worker

pytestmark = pytest.mark.engine

QUESTION = "What is this?"
RED, BLUE = (255, 0, 0), (0, 0, 255)
COMPARED_TOKENS = 4


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, vllm_installed: None, tiny_llava: Path) -> Iterator[EngineWorker]:
    with engine_worker(tmp_path_factory.mktemp("worker"), "vllm", tiny_llava) as worker:
        yield worker


def picture(colour: tuple[int, int, int]) -> Any:
    """Not square, and not of the size that the model sees."""
    from PIL import Image

    return Image.new("RGB", (90, 70), colour)


def data_uri(colour: tuple[int, int, int]) -> str:
    file = io.BytesIO()
    picture(colour).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def ask(worker: EngineWorker, *images: str) -> httpx.Response:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in images]
    parts.append({"type": "text", "text": QUESTION})
    body = {"model": MODEL_NAME, "messages": [{"role": "user", "content": parts}], "temperature": 0,
            "max_tokens": COMPARED_TOKENS}  # fmt: skip
    return worker.http.post("/v1/chat/completions", json=body)


def answer_of(response: httpx.Response) -> tuple[str, int]:
    """The text, and how long the prompt was."""
    assert response.status_code == 200, response.text
    body = response.json()
    return body["choices"][0]["message"]["content"], body["usage"]["prompt_tokens"]


def expected(model: Path, colour: tuple[int, int, int] | None) -> tuple[str, int]:
    """What transformers says."""
    cpu_shims.install()
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    processor = LlavaProcessor.from_pretrained(model)
    content = f"{IMAGE}\n{QUESTION}" if colour else QUESTION
    prompt = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    inputs = processor(text=prompt, images=picture(colour) if colour else None, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    tokens = LlavaForConditionalGeneration.from_pretrained(model).generate(
        **inputs, max_new_tokens=COMPARED_TOKENS, do_sample=False
    )
    return processor.decode(tokens[0][length:], skip_special_tokens=True), length


@pytest.mark.parametrize("colour", [RED, BLUE])
def test_an_image_is_seen(worker: EngineWorker, tiny_llava: Path, colour: tuple[int, int, int]) -> None:
    assert answer_of(ask(worker, data_uri(colour))) == expected(tiny_llava, colour)


def test_two_images_are_seen(worker: EngineWorker) -> None:
    one, two = answer_of(ask(worker, data_uri(RED))), answer_of(ask(worker, data_uri(RED), data_uri(BLUE)))
    assert two[1] - one[1] > IMAGE_TOKENS
    assert two[0] != one[0]


def test_text_alone_is_answered_too(worker: EngineWorker, tiny_llava: Path) -> None:
    assert answer_of(ask(worker)) == expected(tiny_llava, None)


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,aGVsbG8=",
        data_uri(RED)[:-40],
        "data:image/png;base64,!!!",
        "data:image/png;base64",
        "red.png",
    ],
    ids=["no image", "cut off", "no base64", "no comma", "a name"],
)
def test_a_broken_image_is_the_clients_error_and_the_worker_lives(worker: EngineWorker, url: str) -> None:
    response = ask(worker, url)
    assert 400 <= response.status_code < 500, response.text
    assert response.json()["error"]["message"]
    assert ask(worker, data_uri(BLUE)).status_code == 200
    assert worker.is_answering()


@pytest.mark.parametrize("url", ["data:image/png,red", "file:///etc/hostname", "http://127.0.0.1:1/red.png"])
def test_what_is_not_fetched_is_an_error_and_the_worker_lives(worker: EngineWorker, url: str) -> None:
    response = ask(worker, url)
    assert response.status_code in (400, 500, 501)  # the engine's own choice, not always a good one
    assert response.json()["error"]["message"]
    assert ask(worker, data_uri(BLUE)).status_code == 200
    assert worker.is_answering()


def test_tools_are_refused_by_a_worker_without_a_parser(worker: EngineWorker) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    answer = worker.ask(tools=[tool])
    assert answer.status_code == 400
    assert "--tool-call-parser" in answer.json()["error"]["message"]
    assert worker.ask().status_code == 200

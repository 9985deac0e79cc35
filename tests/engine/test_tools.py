"""Tool calls, reasoning and LoRA adapters on vLLM, with the demo model.

The demo model is too small to call tools or to think by itself: what it says is forced, and what is tested is what
becomes of it.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from backends import cpu_shims
from tests.engine.models import LORA_RANK
from tests.engine.support import MODEL_NAME, QUESTION, EngineWorker, engine_worker, question
from utils.sse import SSEParser

pytestmark = pytest.mark.engine

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": CITY}}]
CALL = r'<tool_call>\n\{"name": "weather", "arguments": \{"city": "(Paris|Rome)"\}\}\n</tool_call>'
THOUGHT = r"<think>\nLet me see\n</think>\n"
THOUGHT_TEXT = "Let me see"
COMPARED_TOKENS = 4


@pytest.fixture(scope="module")
def worker(
    tmp_path_factory: pytest.TempPathFactory, vllm_installed: None, model_folder: Path, tools_template: Path,
    lora_adapters: dict[str, Path],
) -> Iterator[EngineWorker]:  # fmt: skip
    argv = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--chat-template", str(tools_template)]
    # The other parsers want tokens that the demo model's tokenizer does not have; this one reads text.
    argv += ["--reasoning-parser", "olmo3", "--structured-outputs-config", '{"enable_in_reasoning": true}']
    argv += ["--enable-lora", "--max-loras", "2", "--max-lora-rank", str(LORA_RANK)]
    argv += ["--lora-modules", f"a={lora_adapters['a']}"]
    with engine_worker(tmp_path_factory.mktemp("worker"), "vllm", model_folder, *argv) as worker:
        load(worker, "b", lora_adapters["b"])
        yield worker


def load(worker: EngineWorker, name: str, folder: Path) -> None:
    """An adapter, while the engine runs."""
    answer = worker.http.post("/control/adapters", json={"name": name, "path": str(folder)})
    assert answer.status_code == 200, answer.text
    assert name in answer.json()["adapters"]


def forced(regex: str, **more: Any) -> dict[str, Any]:
    return question(structured_outputs={"regex": regex}, max_tokens=120, **more)


def message_of(worker: EngineWorker, body: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The message, and why it ended."""
    answer = worker.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["message"], choice["finish_reason"]


def stream_of(worker: EngineWorker, body: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """The deltas of the same, and why it ended."""
    parser, events = SSEParser(), []
    with worker.http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        for chunk in answer.iter_bytes():
            events += parser.feed(chunk)
    choices = [json.loads(event.data)["choices"][0] for event in events[:-1]]
    return [choice["delta"] for choice in choices], choices[-1]["finish_reason"]


def joined(deltas: list[dict[str, Any]], field: str) -> str:
    return "".join(delta.get(field) or "" for delta in deltas)


def is_the_call(name: str, arguments: str) -> bool:
    return name == "weather" and json.loads(arguments)["city"] in ("Paris", "Rome")


def test_a_call_is_read_out_of_what_the_model_says(worker: EngineWorker) -> None:
    message, reason = message_of(worker, forced(CALL, tools=TOOLS))
    assert reason == "tool_calls"
    (call,) = message["tool_calls"]
    assert call["id"]
    assert call["type"] == "function"
    assert is_the_call(**call["function"])
    assert not message["content"]


def test_a_streamed_call_comes_in_pieces(worker: EngineWorker) -> None:
    # Else the parser takes what it reads for a thought until that ends, which is so only when streaming.
    no_thought = {"enable_thinking": False}
    deltas, reason = stream_of(worker, forced(CALL, tools=TOOLS, chat_template_kwargs=no_thought))
    assert reason == "tool_calls"
    pieces = [piece for delta in deltas for piece in delta.get("tool_calls") or []]
    assert {piece["index"] for piece in pieces} == {0}
    assert pieces[0]["id"]
    name, arguments = (
        "".join(piece["function"].get(field) or "" for piece in pieces) for field in ("name", "arguments")
    )
    assert is_the_call(name, arguments)
    assert not joined(deltas, "content").strip()


def test_a_result_of_a_tool_is_taken(worker: EngineWorker) -> None:
    asked = message_of(worker, forced(CALL, tools=TOOLS))[0]
    result = {"role": "tool", "tool_call_id": asked["tool_calls"][0]["id"], "content": "sunny"}
    body = question(tools=TOOLS)
    body["messages"] += [{name: asked[name] for name in ("role", "content", "tool_calls")}, result]
    assert message_of(worker, body)[0]["content"]


def test_thoughts_are_told_apart_from_the_answer(worker: EngineWorker) -> None:
    body = forced(f"{THOUGHT}Paris")
    message, _ = message_of(worker, body)
    assert [message[field].strip() for field in ("reasoning", "content")] == [THOUGHT_TEXT, "Paris"]
    deltas, _ = stream_of(worker, body)
    assert [joined(deltas, field) for field in ("reasoning", "content")] == [message["reasoning"], message["content"]]


def greedy_texts(base: Path, adapters: dict[str, Path]) -> dict[str, str]:
    """What transformers says, with each adapter's weights added to the model's, and without; by model name."""
    cpu_shims.install()
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    messages = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(prompt, return_tensors="pt")
    texts = {}
    for name, folder in {MODEL_NAME: None, **adapters}.items():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        weights = load_file(folder / "adapter_model.safetensors") if folder else {}
        for key in (key for key in weights if "lora_A" in key):
            changed = model.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            changed.weight.data += weights[key.replace("lora_A", "lora_B")] @ weights[key]
        tokens = model.generate(**inputs, max_new_tokens=COMPARED_TOKENS, do_sample=False)
        texts[name] = tokenizer.decode(tokens[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def test_each_adapter_answers_as_its_own_model(
    worker: EngineWorker, model_folder: Path, lora_adapters: dict[str, Path]
) -> None:
    expected = greedy_texts(model_folder, lora_adapters)
    assert len(set(expected.values())) == 3

    def ask(name: str) -> str:
        body = {**question(max_tokens=COMPARED_TOKENS), "model": name}
        answer = worker.http.post("/v1/chat/completions", json=body)
        assert answer.json()["model"] == name, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    # Alone: on a CPU, what runs in one batch with adapters is given the last one's weights if it wants none
    # (https://github.com/vllm-project/vllm/pull/48421).
    texts = {MODEL_NAME: ask(MODEL_NAME)}
    with ThreadPoolExecutor() as pool:
        texts |= zip(lora_adapters, pool.map(ask, lora_adapters), strict=True)
    assert texts == expected
    listed = worker.http.get("/v1/models").json()["data"]
    assert {model["id"]: model["parent"] for model in listed} == {MODEL_NAME: None, "a": MODEL_NAME, "b": MODEL_NAME}


def test_an_adapter_goes_and_comes_again(worker: EngineWorker, lora_adapters: dict[str, Path]) -> None:
    body = {**question(max_tokens=COMPARED_TOKENS), "model": "b"}
    before = worker.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    gone = worker.http.request("DELETE", "/control/adapters", json={"name": "b"})
    assert gone.json()["adapters"] == ["a"], gone.text
    assert worker.http.post("/v1/chat/completions", json=body).status_code == 404
    load(worker, "b", lora_adapters["a"])  # another one under its name, which must not be answered from a cache
    after = worker.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert after != before
    worker.http.request("DELETE", "/control/adapters", json={"name": "b"})
    load(worker, "b", lora_adapters["b"])


def test_an_adapter_of_too_high_a_rank_is_refused(
    worker: EngineWorker, tmp_path: Path, lora_adapters: dict[str, Path]
) -> None:
    for file in lora_adapters["a"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    description = tmp_path / "adapter_config.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "r": 4 * LORA_RANK}))
    answer = worker.http.post("/control/adapters", json={"name": "wide", "path": str(tmp_path)})
    assert answer.status_code == 400, answer.text
    assert "rank" in answer.json()["error"]["message"]
    assert worker.ask().status_code == 200


def test_an_adapter_that_is_not_loaded_is_not_found(worker: EngineWorker) -> None:
    answer = worker.http.post("/v1/chat/completions", json={**question(), "model": "c"})
    assert answer.status_code == 404
    assert "`c` does not exist" in answer.json()["error"]["message"]

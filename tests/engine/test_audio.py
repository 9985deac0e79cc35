"""Speech to text, on vLLM, with a tiny Whisper."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends import cpu_shims
from tests.engine.models import AUDIO_RATE, AUDIO_SECONDS
from tests.engine.support import MODEL_NAME, EngineWorker, engine_worker
from utils.sse import SSEParser

pytestmark = pytest.mark.engine

COMPARED_TOKENS = 8


@pytest.fixture(scope="module")
def worker(
    tmp_path_factory: pytest.TempPathFactory, vllm_installed: None, tiny_whisper: Path
) -> Iterator[EngineWorker]:
    with engine_worker(tmp_path_factory.mktemp("worker"), "vllm", tiny_whisper) as worker:
        yield worker


def tone(frequency_hz: float) -> Any:
    import numpy

    return 0.5 * numpy.sin(2 * numpy.pi * frequency_hz * numpy.arange(AUDIO_RATE * AUDIO_SECONDS) / AUDIO_RATE)


def wav(samples: Any) -> bytes:
    """At the model's own rate: vLLM resamples with a package that is not among our requirements."""
    import soundfile  # type: ignore[import-untyped]

    file = io.BytesIO()
    soundfile.write(file, samples, AUDIO_RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def transcribe(worker: EngineWorker, audio: bytes, **more: Any) -> httpx.Response:
    form = {"model": MODEL_NAME, "language": "en", "temperature": "0", **more}
    return worker.http.post("/v1/audio/transcriptions", data=form, files={"file": ("tone.wav", audio, "audio/wav")})


def expected(model: Path, samples: Any) -> str:
    """What transformers says: always the likeliest token."""
    cpu_shims.install()
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    processor = WhisperProcessor.from_pretrained(model)
    whisper = WhisperForConditionalGeneration.from_pretrained(model).eval()
    heard = processor(samples, sampling_rate=AUDIO_RATE, return_tensors="pt").input_features
    begin = "<|startoftranscript|><|en|><|transcribe|><|notimestamps|>"
    prompt = processor.tokenizer(begin, add_special_tokens=False, return_tensors="pt").input_ids
    tokens = prompt
    with torch.no_grad():
        for _ in range(COMPARED_TOKENS):
            likely = whisper(input_features=heard, decoder_input_ids=tokens).logits[:, -1:].argmax(-1)
            tokens = torch.cat([tokens, likely], dim=1)
    return str(processor.tokenizer.decode(tokens[0][prompt.shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize("frequency_hz", [300, 3000])
def test_speech_is_heard(worker: EngineWorker, tiny_whisper: Path, frequency_hz: float) -> None:
    samples = tone(frequency_hz)
    answer = transcribe(worker, wav(samples), max_completion_tokens=str(COMPARED_TOKENS))
    assert answer.status_code == 200, answer.text
    assert answer.json()["text"] == expected(tiny_whisper, samples)
    assert answer.json()["usage"]["seconds"] == AUDIO_SECONDS


def test_a_stream_says_the_same(worker: EngineWorker) -> None:
    audio = wav(tone(300))
    parser = SSEParser()
    *events, last = parser.feed(transcribe(worker, audio, stream="true").content)
    assert last.data == "[DONE]"
    deltas = [choice["delta"] for event in events for choice in json.loads(event.data)["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == transcribe(worker, audio).json()["text"]


def test_what_is_no_audio_is_the_clients_error_and_the_worker_lives(worker: EngineWorker) -> None:
    answer = transcribe(worker, b"hello")
    assert answer.status_code == 400
    assert "audio" in answer.json()["error"]["message"]
    assert transcribe(worker, wav(tone(300))).status_code == 200
    assert worker.is_answering()

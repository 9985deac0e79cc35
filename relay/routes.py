"""The data plane's routes, and what an engine must do to serve each."""

from collections.abc import Mapping
from typing import Final

ROUTES: Final = {
    "/v1/chat/completions": "chat completion",
    "/v1/completions": "completion",
    "/v1/responses": "response",
    "/v1/messages": "message (Anthropic's)",
    "/v1/embeddings": "embedding",
    "/v1/rerank": "ranking (Cohere's and Jina's)",
    "/v1/score": "score of pairs",
    "/v1/tokenize": "tokenization",
    "/v1/detokenize": "detokenization",
    "/v1/audio/transcriptions": "transcription of speech",
    "/v1/audio/translations": "translation of speech into English",
}
"""POST requests that name a model: in their JSON, or in the form that they upload."""
UPLOADS: Final = frozenset({"/v1/audio/transcriptions", "/v1/audio/translations"})
GENERATE: Final = ("generate",)
HEAR: Final = ("transcription",)
COMPARE: Final = ("score", "classify", "embed")
TASKS: Final[Mapping[str, tuple[str, ...]]] = {
    "/v1/chat/completions": GENERATE,
    "/v1/completions": GENERATE,
    "/v1/responses": GENERATE,
    "/v1/messages": GENERATE,
    "/v1/embeddings": ("embed",),
    "/v1/rerank": COMPARE,
    "/v1/score": COMPARE,
    "/v1/audio/transcriptions": HEAR,
    "/v1/audio/translations": HEAR,
}
"""What an engine must do for a route, one of these, in the words of ``Heartbeat.tasks``; others are for all."""

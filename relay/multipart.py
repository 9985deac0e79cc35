"""The model's name in a form with files (RFC 7578), found while the form comes in: nothing else of it is kept."""

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from relay.request import NO_MODEL, Headers
from utils.errors import BadRequest, UnsupportedMediaType

MAX_MODEL_BYTES = 256


def boundary_of(headers: Headers) -> bytes:
    """Raises UnsupportedMediaType, BadRequest."""
    given = headers.get(b"content-type", b"")
    kind, options = parse_options_header(given)
    if kind != b"multipart/form-data":
        named = given.decode("latin-1")[:100] or "none"
        raise UnsupportedMediaType(f"the content type is {named}: send the file and the model as multipart/form-data")
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= 70:
        raise BadRequest("the form has no usable boundary: let your HTTP library write the content type itself")
    return boundary


class ModelFinder:
    """Takes a form's bytes until it has read the field ``model``."""

    def __init__(self, boundary: bytes) -> None:
        self.model = ""  # as soon as it is known
        self._is_at_model = False
        self._header = b""
        self._disposition = b""
        self._value = b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_begin": self._begin_header,
                "on_header_field": self._take_header_name,
                "on_header_value": self._take_header_value,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._take_value,
                "on_part_end": self._end_part,
            },
        )

    def feed(self, piece: bytes) -> None:
        """Raises BadRequest for what is no such form, or has an unusable model."""
        try:
            self._parser.write(piece)
        except MultipartParseError as error:
            raise BadRequest(f"the form is broken: {error}") from error

    def _begin_part(self) -> None:
        self._disposition = self._value = b""

    def _begin_header(self) -> None:
        self._header = b""

    def _take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition += data[start:end]

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._is_at_model = options.get(b"name") == b"model" and b"filename" not in options

    def _take_value(self, data: bytes, start: int, end: int) -> None:
        if self._is_at_model:
            self._value += data[start:end]
            if len(self._value) > MAX_MODEL_BYTES:
                raise BadRequest(f"the model's name is longer than {MAX_MODEL_BYTES} bytes", param="model")

    def _end_part(self) -> None:
        if not self._is_at_model or self.model:
            return
        self.model = self._value.decode("utf-8", "replace").strip()
        if not self.model:
            raise BadRequest(NO_MODEL, param="model")

"""A collector of OpenTelemetry's spans on a free port: OTLP over HTTP, as protobuf."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.scripted import read_request, scripted

Attributes = dict[str, str | int | float | bool]


class Collector:
    """Keeps what it gets. ``status``: of its answers; ``may_answer``: until then it is silent."""

    def __init__(self) -> None:
        self.address = ("", 0)
        self.bodies: list[bytes] = []
        self.status = b"200 OK"
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.got = asyncio.Condition()

    @property
    def endpoint(self) -> str:
        return f"http://{self.address[0]}:{self.address[1]}/v1/traces"

    @property
    def requests(self) -> list[ExportTraceServiceRequest]:
        return [ExportTraceServiceRequest.FromString(body) for body in self.bodies]

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    async def wait_for_posts(self, count: int) -> None:
        async with asyncio.timeout(10), self.got:
            await self.got.wait_for(lambda: len(self.bodies) >= count)

    async def script(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            body = (await read_request(reader)).partition(b"\r\n\r\n")[2]
            async with self.got:
                self.bodies.append(body)
                self.got.notify_all()
            await self.may_answer.wait()
            writer.write(b"HTTP/1.1 %b\r\ncontent-length: 0\r\n\r\n" % self.status)
            await writer.drain()


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()
    async with scripted(collector.script) as (_, collector.address):
        yield collector


def plain(attributes: list[KeyValue]) -> Attributes:
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in attributes}

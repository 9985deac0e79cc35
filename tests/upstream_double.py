"""What stands at the other end of a connection, for tests that need no sockets."""

import asyncio


class Wire(asyncio.Transport):
    """Keeps what it hears."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = b""
        self.is_cut = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.heard += data

    def abort(self) -> None:
        self.is_cut = True

    def get_write_buffer_size(self) -> int:
        return 0

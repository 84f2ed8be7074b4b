"""uvicorn as this service needs it: it leaves in steps, and a connection that says or takes nothing is closed."""

import asyncio
import signal
import time
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.admission import ByteBudget
from app.service import Service

HEADER_SECONDS = 5.0
"""Time a client may take to send the head of a request, from its first byte, or from connecting."""
LINGER_SECONDS = 15.0
"""Time for the rest of a body that was refused: a client that is cut off sooner never reads why."""
UNREAD_SECONDS = 15.0
"""Time in which a client must take `UNREAD_BYTES` of a reply, or what is left: as long as a whole body may take."""
UNREAD_BYTES = 256 * 1024
"""Of what waits in this process; a slow phone takes as much. Who takes less keeps memory, and a drain from ending."""
MAX_HEAD_BYTES = 64 * 1024
"""Of the path and all headers together; and of what may stand between two pieces of a chunked body, or after it."""


class Server(uvicorn.Server):
    """uvicorn alone closes its port at SIGTERM, and a load balancer sees refused connections.

    Here the service first says that it is not ready, and serves on for `delay` seconds; only then
    does uvicorn close the port, finish what is in flight and end. A second signal, or SIGINT, does not wait.
    """

    def __init__(self, config: uvicorn.Config, service: Service, delay: float) -> None:
        super().__init__(config)
        self._service = service
        self._delay = delay
        self._leaves_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See `uvicorn.Server`."""
        if sig != signal.SIGTERM or self._leaves_at is not None or not self._service.ready:
            super().handle_exit(sig, frame)
            return
        self._service.leaving = True
        self._leaves_at = time.monotonic() + self._delay

    async def on_tick(self, counter: int) -> bool:
        """See `uvicorn.Server`; called every 0.1 s."""
        if self._leaves_at is not None and time.monotonic() >= self._leaves_at:
            self.should_exit = True
        return await super().on_tick(counter)


class _Joined:
    """A transport that sends the head of a reply together with what follows it at once.

    uvicorn writes head and body one after the other, and each of them would be a call, a packet and a waking of the
    client: a tenth of a millisecond of a small request's cost.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: bytes | None = None

    def __getattr__(self, name: str) -> Any:
        """Everything else is the transport's own."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Keep the first piece until the next one comes, or until the event loop's next turn."""
        if self._held is None:
            self._held = data
            self._loop.call_soon(self._flush)
        else:
            held, self._held = self._held, None
            self._transport.writelines((held, data))

    def close(self) -> None:
        """Send what is held, then close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            self._transport.write(held)


class Protocol(HttpToolsProtocol):
    """HTTP/1.1 with a bound on the head of a request, in bytes and in time, and on an unread reply; uvicorn has none.

    Between requests, uvicorn's own keep-alive timeout holds; in a body, the service's. What waits to be read counts
    with the bodies in memory, so that new ones are refused before replies fill it.
    """

    _late: asyncio.TimerHandle | None = None
    _unread = 0
    _next_look: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = True
    _in_body = False

    def connection_made(self, transport: Any) -> None:
        """Start the clock: the first request must come."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # whatever waits is told, not only what is more than a buffer
        self._budget: ByteBudget = cast(Any, self.config.app).state.service.body_bytes
        self.transport = _Joined(transport, self.loop)  # type: ignore[assignment]  # replies are written to it
        self._start_clock(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop_clock()
        self._count(0)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """A reply waits for its client: the operating system has all that it keeps of it."""
        super().pause_writing()
        self._count(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """All of it is sent."""
        self._count(0)
        super().resume_writing()

    def look(self) -> None:
        """Give the connection up, with what waits for it, unless its client has taken enough since the last time."""
        unread = self.transport.get_write_buffer_size()
        if unread > self._unread - UNREAD_BYTES:
            self.transport.abort()  # closing would wait until all is sent
        else:
            self._count(unread)

    def _count(self, unread: int) -> None:
        """Hold as many bytes of replies, and look again later if there are any."""
        self._budget.held += unread - self._unread
        self._unread = unread
        if self._next_look is not None:
            self._next_look.cancel()
        self._next_look = self.loop.call_later(UNREAD_SECONDS, self.look) if unread else None

    def data_received(self, data: bytes) -> None:
        """Count what is neither a body nor a whole head: heads, the framing of chunks, trailers."""
        self._head_bytes += len(data)
        super().data_received(data)
        # What came with the end of the head is its body, which is counted elsewhere.
        if self.transport.is_closing():
            return
        if self._head_bytes > MAX_HEAD_BYTES:
            if self._in_head:
                self.send_400_response("Request head too large.")
            elif self._in_body:
                self._close()  # a reply may have begun, so nothing can be said
        elif self._late is None and (self._in_head or self.cycle is None or self.cycle.response_complete):
            # A head that is not there yet, empty lines between requests, or the rest of a body that was refused.
            self._start_clock(LINGER_SECONDS if self._in_body else HEADER_SECONDS)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; what stands after a chunked body is none, and uvicorn would keep it all."""
        if self._in_head:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """A piece of the body, which the service counts itself."""
        self._head_bytes = 0
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._in_head, self._in_body, self._head_bytes = False, True, 0
        self._stop_clock()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is there too."""
        self._in_body, self._head_bytes = False, 0
        self._stop_clock()
        super().on_message_complete()

    def _start_clock(self, seconds: float) -> None:
        self._late = self.loop.call_later(seconds, self._close)

    def _stop_clock(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close(self) -> None:
        self._late = None
        if not self.transport.is_closing():
            self.transport.close()

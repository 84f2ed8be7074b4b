"""Images given as URLs: off unless an allow-list of origins is set, and then as little of a browser as will do.

A URL is read by one strict grammar, so that no two parsers can disagree about its host. Its origin must be
on the list; the host is resolved once, every address of it must be public, and the connection goes to an
address that was checked (a name that resolves differently a moment later changes nothing). Each redirect is
a new URL. There are no cookies, credentials, proxies or compressed replies, and bytes and time are bounded.
What went wrong is told by kind; the URL, its host and its addresses stand in no error and no log.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import urljoin

from app.errors import ServiceError

MAX_URL = 2048
MAX_REDIRECTS = 3
CONNECTIONS = 16
"""Images fetched at once, of all requests."""

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::(?P<port>\d{1,5}))?(?P<rest>[/?].*)?"
)
_ORIGIN = re.compile(
    r"(?P<scheme>https?)://(?P<any>\*\.)?(?P<host>[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::(?P<port>\d{1,5}))?"
)
_PORTS = {"http": 80, "https": 443}
_NO_URL = "its URL is not of the form http(s)://host/path"
_REFUSED = "its origin is not on the list of those that images are fetched from"

# Not of the internet although some version of `ipaddress` says so: special blocks that clouds put their own
# services in, and one address that is public by number and Azure's host agent.
_INSIDE = [ipaddress.ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "3fff::/20")]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Iterable[str]]


class Origin(NamedTuple):
    """One entry of the allow-list; `below` allows the hosts under `host`, not `host` itself."""

    scheme: str
    host: str
    port: int
    below: bool

    @classmethod
    def parse(cls, text: str) -> "Origin":
        """`https://images.example.org`, `https://*.example.org`, `http://example.org:8080`. Raises ValueError."""
        found = _ORIGIN.fullmatch(text)
        if found is None or not 0 < (port := int(found["port"] or _PORTS[found["scheme"]])) < 65536:
            raise ValueError("expected origins such as https://images.example.org or https://*.example.org")
        return cls(found["scheme"], found["host"], port, found["any"] is not None)

    def allows(self, target: "Target") -> bool:
        """Whether a URL is of this origin."""
        host = target.host.endswith("." + self.host) if self.below else target.host == self.host
        return host and (target.scheme, target.port) == (self.scheme, self.port)


class Target(NamedTuple):
    """A URL in parts, as it is connected to."""

    scheme: str
    host: str
    port: int
    path: str

    def __repr__(self) -> str:
        """Nothing of the URL: this may stand in a trace."""
        return "Target(...)"


class FetchError(Exception):
    """An image that cannot be fetched; `refused` if it never will be. The message names nothing of the URL."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused

    def at(self, index: int) -> ServiceError:
        """As the error of one image of a request."""
        kind: Any = "url_refused" if self.refused else "url_failed"
        return ServiceError(kind, f"image {index}: {self}.", index=index)


def parse_url(text: str, allowed: Sequence[Origin]) -> Target:
    """A URL of an allowed origin, in parts. Raises FetchError.

    Hosts are lower-case ASCII without a trailing dot; user names, IPv6 literals, backslashes, blanks and
    control characters are not part of the grammar.
    """
    if len(text) > MAX_URL or not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise FetchError("its URL is not plain printable ASCII, or too long", refused=True)
    head, separator, tail = text.partition("://")
    host, slash, rest = re.split(r"([/?#]|$)", tail, maxsplit=1) if separator else ("", "", "")
    found = _URL.fullmatch((head + separator + host).lower() + (slash + rest).partition("#")[0])
    if found is None:
        raise FetchError(_NO_URL, refused=True)
    path = found["rest"] or "/"
    port = int(found["port"] or _PORTS[found["scheme"]])
    target = Target(found["scheme"], found["host"], port, path if path.startswith("/") else "/" + path)
    if not any(origin.allows(target) for origin in allowed):
        raise FetchError(_REFUSED, refused=True)
    return target


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet at large, in whatever form it is written or wrapped."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if int(address) >> 32 == 0 or address.is_site_local:  # ::a.b.c.d, and the old private range
            return False
    if address.is_multicast or address.is_reserved or any(address in network for network in _INSIDE):
        return False
    return address.is_global


def resolve(host: str, port: int) -> list[str]:
    """Addresses of a host, by the system's resolver; runs in a thread."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class Fetcher:
    """Fetches images of allowed origins. Made on the event loop that it then serves.

    Args:
        allowed: origins, as in the settings.
        max_bytes: of one image.
        seconds: for one image, redirects and all.
        resolve: host and port to addresses.
        permits: whether an address may be connected to; tests allow their own machine.
    """

    def __init__(
        self,
        allowed: Sequence[str],
        max_bytes: int,
        seconds: float,
        *,
        resolve: Resolve = resolve,
        permits: Callable[[Address], bool] = is_public,
        ssl_context: Any = None,
    ) -> None:
        import httpcore2  # here, because only this needs it

        self.allowed = tuple(Origin.parse(text) for text in allowed)
        self._httpcore = httpcore2
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._resolve = resolve
        self._permits = permits
        # A thread of its own: names that resolve slowly must not hold up what the others are for.
        self._names = ThreadPoolExecutor(4, thread_name_prefix="resolve")
        self._turn = asyncio.Semaphore(CONNECTIONS)
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=CONNECTIONS,
            max_keepalive_connections=0,  # every connection is checked anew
            network_backend=_checked_backend(httpcore2, self._addresses),
        )

    async def close(self) -> None:
        """Give up what is under way."""
        await self._pool.aclose()
        self._names.shutdown(wait=False, cancel_futures=True)

    async def fetch(self, target: Target, take: Callable[[int], None]) -> bytes:
        """The bytes of an image.

        Args:
            target: where it is, from `parse_url`.
            take: told of every piece that arrives; may refuse.

        Raises:
            FetchError: refused, not there, too large or too slow.
        """
        core = self._httpcore
        try:
            async with self._turn, asyncio.timeout(self._seconds):
                for _ in range(MAX_REDIRECTS + 1):
                    found = await self._get(target, take)
                    if isinstance(found, bytes):
                        return found
                    target = found
            raise FetchError(f"more than {MAX_REDIRECTS} redirects", refused=True)
        except TimeoutError as error:
            raise FetchError(f"it did not arrive within {self._seconds:g} s") from error
        except (core.NetworkError, core.ProtocolError, core.TimeoutException, OSError) as error:
            # Without the cause: its text may name the host.
            raise FetchError(f"fetching failed ({type(error).__name__})") from None

    async def _get(self, target: Target, take: Callable[[int], None]) -> bytes | Target:
        """One request: the body, or where else it is."""
        url = self._httpcore.URL(
            scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path.encode()
        )
        headers = [("Accept", "image/*"), ("Accept-Encoding", "identity"), ("User-Agent", "alignet-serve")]
        async with self._pool.stream("GET", url, headers=headers) as response:
            given = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in (301, 302, 303, 307, 308) and "location" in given:
                base = f"{target.scheme}://{target.host}:{target.port}{target.path}"
                try:
                    following = urljoin(base, given["location"])
                except ValueError:  # a bracket that is not closed, for instance; the text would name the host
                    raise FetchError(_NO_URL, refused=True) from None
                return parse_url(following, self.allowed)
            if response.status != 200:
                raise FetchError(f"its server answers {response.status}")
            media_type = given.get("content-type", "image/").split(";")[0].strip().lower()
            if not media_type.startswith("image/") and media_type != "application/octet-stream":
                raise FetchError("its server sends no image", refused=True)
            if given.get("content-encoding", "identity").lower() != "identity":
                raise FetchError("its server sends it compressed", refused=True)
            too_large = FetchError(f"it has more than {self._max_bytes} bytes", refused=True)
            stated = given.get("content-length", "")
            if stated.isdecimal() and (len(stated) > 18 or int(stated) > self._max_bytes):
                raise too_large
            pieces, size = [], 0
            async for piece in response.aiter_stream():
                size += len(piece)
                if size > self._max_bytes:
                    raise too_large
                take(len(piece))
                pieces.append(piece)
            return b"".join(pieces)

    async def _addresses(self, host: str, port: int) -> list[str]:
        """Addresses that may be connected to. Raises FetchError if any address of the host may not."""
        loop = asyncio.get_running_loop()
        try:
            found = list(await loop.run_in_executor(self._names, self._resolve, host, port))
            parsed = [ipaddress.ip_address(address.partition("%")[0]) for address in found]
        except (OSError, ValueError, UnicodeError):
            found, parsed = [], []
        # One wrong address among good ones is how a name is made to point inside.
        if not parsed or not all(map(self._permits, parsed)):
            raise FetchError("its host has no public address", refused=True)
        return found


def _checked_backend(core: Any, addresses: Any) -> Any:
    """httpcore2's network, but for whom it connects to."""

    class Checked(core.AsyncNetworkBackend):  # type: ignore[misc]  # a class of a package imported on demand
        def __init__(self) -> None:
            self._network = core.AnyIOBackend()

        async def connect_tcp(self, host: str, port: int, **options: Any) -> Any:
            failure: Exception = FetchError("its host has no public address", refused=True)
            for address in (await addresses(host, port))[:3]:
                try:
                    return await self._network.connect_tcp(address, port, **options)
                except (core.ConnectError, core.ConnectTimeout) as error:
                    failure = error
            raise failure

        async def sleep(self, seconds: float) -> None:
            await asyncio.sleep(seconds)

    return Checked()

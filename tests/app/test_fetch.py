"""Images given as URLs: only from where the list says, only to public addresses, bounded, and never quoted."""

import asyncio
import contextlib
import ipaddress
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
import trustme
from fastapi.testclient import TestClient
from pydantic import ValidationError

from app.errors import ServiceError
from app.fetch import Fetcher, FetchError, Origin, Target, is_public, parse_url
from app.settings import Settings
from tests.toy import encoded, photo

Serve = Callable[..., TestClient]
IMAGE = encoded(photo(0))
LISTED = [Origin.parse("https://images.example.org"), Origin.parse("http://*.cdn.example.org:8080")]

# The list of addresses inside, as URLs write them. None may pass the list; each is also an answer of a resolver.
INSIDE = [
    "127.0.0.1", "127.1", "0.0.0.0", "0", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.0.0.1", "10.0.0.1",
    "172.16.0.1", "192.168.0.1", "169.254.169.254", "2852039166", "0251.0376.0251.0376", "100.64.0.1",
    "100.100.100.200", "168.63.129.16", "192.0.0.192", "224.0.0.1", "255.255.255.255", "240.0.0.1",
    "::1", "::", "::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "::127.0.0.1", "fe80::1", "fc00::1", "fd00:ec2::254",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:0:0:0:0:0:80ff:fffe", "ff02::1", "fec0::1",
    "2001:db8::1", "198.18.0.1", "192.0.2.1",
]  # fmt: skip


def literal(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address that the system's own parser reads, octal and decimal included."""
    if ":" in text:
        return ipaddress.ip_address(text)
    return ipaddress.ip_address(socket.inet_aton(text))


@pytest.mark.parametrize("text", INSIDE)
def test_an_address_inside_is_not_public_and_no_url_of_it_is_on_the_list(text: str) -> None:
    assert not is_public(literal(text))
    hosts = [f"[{text}]"] if ":" in text else [text, text + "."]
    for host in hosts:
        for scheme in ("http", "https", "HTTP"):
            with pytest.raises(FetchError) as caught:
                parse_url(f"{scheme}://{host}/a.png", LISTED)
            assert caught.value.refused
            assert text not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["93.184.215.14", "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "2002:808:808::"]
)
def test_an_address_of_the_internet_is_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "url",
    [
        "https://images.example.org@127.0.0.1/", "https://user:pass@images.example.org/", "https://@images.example.org/",
        "https://images.example.org:80/", "https://images.example.org./", "http://images.example.org/",
        "https://images.example.org.evil.org/", "https://evil-images.example.org/", "https://example.org/",
        "https://images.example.org\\@evil.org/", "https://images.example.org%00.evil.org/", "https://[::1]/",
        "https://images.example.org:443:80/", "https:images.example.org/", "https:///images.example.org/",
        "//images.example.org/",
        "ftp://images.example.org/", "file:///etc/passwd", "gopher://images.example.org/",
        "https://images.example.org /",
        "https://images.example.org/\r\nHost: evil", "https://im\u0430ges.example.org/", "https://images。example.org/",
        "https://images.example.org:99999/", "https://images.example.org:-1/", "https://images.example.org:/", "https://",
        "http://cdn.example.org:8080/", "http://a.cdn.example.org/", "http://xcdn.example.org:8080/", "https://images.example.org#@evil.org:80/x@",
        "https://images.example.org/" + "a" * 2048, "https://images.example.org?\t", "https://%69mages.example.org/",
    ],
)  # fmt: skip
def test_what_is_not_exactly_an_allowed_origin_is_refused_and_not_quoted(url: str) -> None:
    if url.startswith("https://images.example.org#"):
        assert parse_url(url, LISTED) == Target("https", "images.example.org", 443, "/")
        return
    with pytest.raises(FetchError) as caught:
        parse_url(url, LISTED)
    assert caught.value.refused
    assert "example" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://images.example.org/a/b.png?x=1#frag", Target("https", "images.example.org", 443, "/a/b.png?x=1")),
        ("HTTPS://Images.Example.ORG:443/A", Target("https", "images.example.org", 443, "/A")),
        ("https://images.example.org", Target("https", "images.example.org", 443, "/")),
        ("https://images.example.org?x", Target("https", "images.example.org", 443, "/?x")),
        ("http://a.b.cdn.example.org:8080/", Target("http", "a.b.cdn.example.org", 8080, "/")),
    ],
)
def test_an_allowed_url_is_read_in_parts(url: str, target: Target) -> None:
    assert parse_url(url, LISTED) == target
    assert "example" not in repr(target)


@pytest.mark.parametrize(
    "origin", ["example.org", "https://*", "https://a.example.org/x", "ftp://a.org", "https://*.*.org", ","]
)
def test_an_entry_that_is_no_origin_is_a_wrong_setting(origin: str) -> None:
    if origin == ",":
        assert Settings(fetch_origins=origin).fetch_origins == ()
        return
    with pytest.raises(ValidationError, match="origins"):
        Settings(fetch_origins=origin)


class Site(BaseHTTPRequestHandler):
    """A server of images, good and bad."""

    asked: ClassVar[list[str]] = []
    gate: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        Site.asked.append(f"{self.headers['Host']}{self.path}")
        assert "Cookie" not in self.headers
        assert "Authorization" not in self.headers
        port = self.server.server_address[1]  # type: ignore[attr-defined]
        name, _, value = self.path.strip("/").partition("/")
        if name == "image":
            self.reply(IMAGE)
        elif name == "status":
            self.reply(b"", int(value))
        elif name == "type":
            self.reply(IMAGE, **{"Content-Type": value})
        elif name == "gzip":
            self.reply(IMAGE, **{"Content-Encoding": "gzip"})
        elif name == "loop":
            self.reply(b"", 302, Location=f"/loop/{int(value) - 1}" if value != "0" else "/image")
        elif name == "to":
            self.reply(b"", 307, Location=value.replace("PORT", str(port)))
        elif name == "stated":
            self.reply(b"x", **{"Content-Length": "99999999999"})
        elif name == "endless":
            self.send_response(200)
            self.end_headers()
            while not Site.gate.is_set():
                self.wfile.write(b"x" * 65536)
        elif name == "drip":
            self.send_response(200)
            self.end_headers()
            while not Site.gate.wait(0.02):
                self.wfile.write(b"x")

    def reply(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, text in ({"Content-Type": "image/png", "Content-Length": str(len(body))} | headers).items():
            self.send_header(key, text)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()


@contextlib.contextmanager
def site_on(wrap: Callable[[socket.socket], socket.socket] = lambda sock: sock) -> Iterator[int]:
    """The port of a running `Site`, whose listening socket is first wrapped."""
    Site.asked, Site.gate = [], threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.socket = wrap(server.socket)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_address[1]
    Site.gate.set()
    server.shutdown()
    server.server_close()
    thread.join(30)


@pytest.fixture
def site() -> Iterator[int]:
    """The port of a running `Site`."""
    with site_on() as port:
        yield port


def get(port: int, path: str, scheme: str = "http", **options: Any) -> bytes:
    """Fetch from the site, which here is called a.test and may be reached."""
    known: dict[str, Any] = {"resolve": lambda host, port: ["127.0.0.1"], "permits": lambda _: True}
    known |= {"max_bytes": 100_000, "seconds": 20} | options

    async def run() -> bytes:
        fetcher = Fetcher([f"{scheme}://a.test:{port}", f"{scheme}://b.test:{port}"], **known)
        try:
            target = parse_url(f"{scheme}://a.test:{port}/{path}", fetcher.allowed)
            return await fetcher.fetch(target, lambda _: None)
        finally:
            await fetcher.close()

    return asyncio.run(run())


@pytest.mark.parametrize("path", ["image", "loop/2", "to/http://b.test:PORT/image", "type/application/octet-stream"])
def test_an_image_is_fetched_through_redirects_that_are_allowed(site: int, path: str) -> None:
    assert get(site, path) == IMAGE


@pytest.mark.parametrize(
    ("path", "refused", "says"),
    [
        ("status/404", False, "404"),
        ("status/500", False, "500"),
        ("loop/9", True, "redirects"),
        ("to/http://c.test:PORT/image", True, "not on the list"),
        ("to/http://127.0.0.1:PORT/image", True, "not on the list"),
        ("to/http://a.test:22/image", True, "not on the list"),
        ("to/file:///etc/passwd", True, "form"),
        ("to/http://[x", True, "form"),
        ("type/text/html", True, "no image"),
        ("gzip", True, "compressed"),
        ("stated", True, "bytes"),
        ("endless", True, "bytes"),
    ],
)
def test_what_is_no_image_of_that_origin_is_an_error_of_its_kind(
    site: int, path: str, refused: bool, says: str
) -> None:
    with pytest.raises(FetchError, match=says) as caught:
        get(site, path)
    assert caught.value.refused is refused
    assert "test" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "trusted"), [("a.test", True), ("b.test", True), ("127.0.0.1", True), ("a.test", False)]
)
def test_over_tls_the_certificate_must_be_of_the_name_in_the_url(name: str, trusted: bool) -> None:
    authority = trustme.CA()
    server_side, ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert(name).configure_cert(server_side)
    if trusted:
        authority.configure_trust(ours)
    with site_on(lambda sock: server_side.wrap_socket(sock, server_side=True)) as port:
        if (name, trusted) == ("a.test", True):  # the connection goes to an address, and is checked by the name
            assert get(port, "image", "https", ssl_context=ours) == IMAGE
            return
        with pytest.raises(FetchError, match="fetching failed") as caught:
            get(port, "image", "https", ssl_context=ours)
    assert "test" not in str(caught.value)
    assert Site.asked == []


def test_a_drip_ends_at_the_time_bound(site: int) -> None:
    start = time.monotonic()
    with pytest.raises(FetchError, match="within"):
        get(site, "drip", seconds=0.2)
    assert time.monotonic() - start < 10


def test_a_server_that_is_not_there_is_an_error() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(FetchError, match="fetching failed") as caught:
            get(closed.getsockname()[1], "image")
    assert not caught.value.refused


@pytest.mark.parametrize("answers", [[], ["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::ffff:127.0.0.1"], ["nonsense"]])
def test_a_host_with_any_address_inside_is_not_connected_to(site: int, answers: list[str]) -> None:
    with pytest.raises(FetchError, match="no public address") as caught:
        get(site, "image", resolve=lambda host, port: answers, permits=is_public)
    assert caught.value.refused
    assert Site.asked == []


def test_the_address_that_was_checked_is_the_one_connected_to(site: int) -> None:
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])  # a name that changes between check and use
    checked: list[str] = []

    def permits(address: Any) -> bool:
        checked.append(str(address))
        return str(address) == "127.0.0.1"

    assert get(site, "image", resolve=lambda host, port: next(answers), permits=permits) == IMAGE
    assert checked == ["127.0.0.1"]


def test_every_redirect_is_resolved_and_checked_again(site: int) -> None:
    def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"] if host == "a.test" else ["169.254.169.254"]

    with pytest.raises(FetchError, match="no public address"):
        get(site, "to/http://b.test:PORT/image", resolve=resolve, permits=lambda a: str(a) == "127.0.0.1")
    assert len(Site.asked) == 1


@pytest.fixture
def fetching(serve: Serve, site: int) -> tuple[TestClient, str]:
    """An app that may fetch from the site, and the start of its URLs."""
    client = serve(fetch_origins=f"http://a.test:{site}", max_image_bytes=100_000)

    async def open_site() -> None:
        client.app.state.service.fetcher = Fetcher(  # type: ignore[attr-defined]
            [f"http://a.test:{site}"], 100_000, 20, resolve=lambda *_: ["127.0.0.1"], permits=lambda _: True
        )

    portal: Any = client.portal
    portal.call(client.app.state.service.fetcher.close)  # type: ignore[attr-defined]
    portal.call(open_site)
    return client, f"http://a.test:{site}"


def items(*texts: str) -> list[dict[str, str]]:
    return [{"image": text} for text in texts]


def test_a_url_gives_the_vector_of_its_file_and_is_fetched_once(fetching: tuple[TestClient, str]) -> None:
    client, start = fetching
    reply = client.post("/embed", json={"images": items(f"{start}/image", f"{start}/image")})
    sent = client.post("/embed", content=IMAGE, headers={"Content-Type": "image/png"})
    assert reply.json()["data"][1]["embedding"] == sent.json()["data"][0]["embedding"]
    assert reply.json()["usage"] == {"images": 2, "unique_images": 1}
    assert len(Site.asked) == 1
    assert client.post("/odd-one-out", json={"images": items(*[f"{start}/image"] * 3)}).status_code == 200
    assert client.post("/similarity", json={"images": items(f"{start}/image")}).status_code == 200


def test_a_bad_url_names_its_index_and_nothing_of_itself(
    fetching: tuple[TestClient, str], caplog: pytest.LogCaptureFixture
) -> None:
    client, start = fetching
    caplog.set_level(logging.DEBUG, "alignet")
    for url, status, code in (
        (f"{start}/status/404", 424, "url_failed"),
        ("http://169.254.169.254/secret", 422, "url_refused"),
        (f"{start}/gzip", 422, "url_refused"),
    ):
        one = client.post("/embed", json={"images": items(f"{start}/image", url)})
        assert (one.status_code, one.json()["code"], one.json()["index"]) == (status, code, 1)
        some = client.post("/embed", json={"images": items(f"{start}/image", url), "on_error": "partial"})
        assert some.json()["data"][1]["error"]["code"] == code
        assert "embedding" in some.json()["data"][0]
        for text in (one.text, json.dumps(some.json()["data"][1]), caplog.text):
            assert "a.test" not in text
            assert "secret" not in text


def test_urls_are_refused_unless_a_list_is_set(client: TestClient) -> None:
    reply = client.post("/embed", json={"images": items("https://images.example.org/a.png")})
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_request")
    assert "example" not in reply.text


def test_fetched_bytes_count_as_held(fetching: tuple[TestClient, str]) -> None:
    client, start = fetching
    budget = client.app.state.service.body_bytes  # type: ignore[attr-defined]
    budget.most, budget.held = 100, 10
    reply = client.post("/embed", json={"images": items(f"{start}/image")})
    assert (reply.status_code, reply.json()["code"]) == (429, "overloaded")
    assert budget.held == 10


def test_an_error_of_fetching_is_a_service_error_of_its_index() -> None:
    error = FetchError("it did not arrive", refused=False).at(3)
    assert isinstance(error, ServiceError)
    assert (error.kind, error.index, error.detail) == ("url_failed", 3, "image 3: it did not arrive.")

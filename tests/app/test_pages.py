"""The pages as files: what is served, how, and that they name nothing outside."""

import re
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from app.routes import pages
from app.routes.pages import FOLDER, PLAYGROUND, SHARED

Serve = Callable[..., TestClient]
FILES = PLAYGROUND | SHARED


TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def test_each_file_is_served_whole_with_its_type_and_the_policy_of_pages(client: TestClient) -> None:
    for path, file in FILES.items():
        reply = client.get(path)
        assert reply.content == (FOLDER / file).read_bytes()
        assert len(reply.content) > 100
        assert reply.headers["Content-Type"].split(";")[0] == TYPES[file.rpartition(".")[2]]
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        (stated,) = reply.headers.get_list("Content-Security-Policy")  # two would both hold
        policy = dict(part.split(" ", 1) for part in stated.split("; "))
        assert {policy[name] for name in ("default-src", "frame-ancestors", "base-uri", "form-action")} == {"'none'"}
        assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}


def test_every_file_of_the_pages_is_in_a_table() -> None:
    tables = [getattr(pages, name) for name in vars(pages) if name.isupper() and name not in ("FOLDER", "TYPES")]
    assert {file.name for file in FOLDER.iterdir()} <= {file for table in tables for file in table.values()}


def test_a_browser_that_has_a_file_is_not_sent_it_again(client: TestClient) -> None:
    first = client.get("/")
    assert first.headers.get_list("Cache-Control") == ["no-cache"]
    again = client.get("/", headers={"If-None-Match": f'"other", W/{first.headers["ETag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/", headers={"If-None-Match": '"other"'}).status_code == 200
    assert client.head("/").headers["Content-Length"] == str(len(first.content))


def test_replies_that_are_no_page_keep_the_policy_that_forbids_everything(client: TestClient) -> None:
    for path in ("/models", "/health/live", "/pages/none.js", "/openapi.json"):
        reply = client.get(path)
        assert reply.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert reply.headers["Cache-Control"] == "no-store"


def test_no_path_leads_to_a_file_that_is_not_in_the_table(client: TestClient) -> None:
    for path in (
        "/pages",
        "/pages/",
        "/pages/playground.html",
        "/pages/../settings.py",
        "/pages/%2e%2e/settings.py",
        "/pages/..%2fsettings.py",
        "/pages/%2e%2e%2f%2e%2e%2fpyproject.toml",
        "/pages//etc/passwd",
        "/pages/style.css/",
        "/pages/style.css%00.js",
        "/pages/STYLE.CSS",
    ):
        reply = client.get(path)
        assert (reply.status_code, reply.json()["code"]) == (404, "route_not_found"), path


def test_switched_off_there_is_no_page(serve: Serve) -> None:
    client = serve(playground=False)
    for path in FILES:
        assert client.get(path).json()["code"] == "route_not_found"
    assert client.get("/models").status_code == 200


def test_the_pages_need_no_key_but_what_they_ask_does(serve: Serve) -> None:
    client = serve(api_keys="secret")
    assert client.get("/").status_code == 200
    assert client.get("/models").status_code == 401


def test_a_page_is_there_for_no_method_but_get(client: TestClient) -> None:
    assert client.post("/").json()["code"] == "method_not_allowed"


def test_the_pages_are_not_in_the_api_document(client: TestClient) -> None:
    assert not [path for path in client.get("/openapi.json").json()["paths"] if path == "/" or "pages" in path]


@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.iterdir()))
def test_a_file_names_no_other_host_and_has_no_script_or_style_inside(file: str) -> None:
    text = (FOLDER / file).read_text()
    names = re.findall(r"(?:[a-z]+:)?//[\w.]+", re.sub(r"(?m)(^|\s)//.*$", "", text))
    assert set(names) <= {"http://www.w3.org"}  # the name of the SVG namespace, which nothing loads
    assert not re.search(r"@import|\burl\(|\beval\(|innerHTML|insertAdjacentHTML|document\.write", text)
    if file.endswith(".html"):
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text)
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text))
        assert not re.findall(r'(?:src|href)="(?:/|\w+:)', text)  # relative: a proxy may put a path before them

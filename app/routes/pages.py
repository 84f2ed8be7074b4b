"""GET / and /pages: the pages that ship inside the package.

They ask the public paths like any other client, load nothing from elsewhere, and need no key themselves, for
they hold nothing of anyone. Each file has a route of its own, so no path is ever made of what a client sends.
"""

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Request, Response

from app.settings import Settings

FOLDER = Path(__file__).parents[1] / "pages"

PLAYGROUND = {
    "/": "playground.html",
    "/pages/api.js": "api.js",
    "/pages/dom.js": "dom.js",
    "/pages/linear.js": "linear.js",
    "/pages/map.js": "map.js",
    "/pages/matrix.js": "matrix.js",
    "/pages/odd.js": "odd.js",
    "/pages/photos.js": "photos.js",
    "/pages/playground.css": "playground.css",
    "/pages/playground.js": "playground.js",
    "/pages/snippets.js": "snippets.js",
}
"""URL paths of the playground, and their files."""

JUDGE = {
    "/judge": "judge.html",
    "/pages/dom.js": "dom.js",
    "/pages/judge.css": "judge.css",
    "/pages/judge.js": "judge.js",
}
"""Those of a study."""

SHARED = {"/pages/icon.svg": "icon.svg", "/pages/style.css": "style.css"}
"""Those that every page uses; served where there is any page."""

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# Scripts and styles are files of this service, never text inside a page, so text of a reply cannot become one.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    # A browser may keep a file, but asks each time whether it is still the one served here.
    "Cache-Control": "no-cache",
}


def router(settings: Settings) -> APIRouter:
    """A route for each file of the pages that the settings switch on; none if all are off."""
    files = (PLAYGROUND if settings.playground else {}) | (JUDGE if settings.judging is not None else {})
    if files:
        files = files | SHARED
    out = APIRouter(include_in_schema=False)
    for path, file in files.items():
        out.add_api_route(path, _sender(FOLDER / file), methods=["GET", "HEAD"], response_class=Response)
    return out


def _sender(file: Path) -> Callable[[Request], Awaitable[Response]]:
    """The route of one file, which is read now; a file that is missing is found at the start."""
    content = file.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = HEADERS | {"ETag": tag, "Content-Type": TYPES[file.suffix]}

    async def send(request: Request) -> Response:
        known = [name.strip().removeprefix("W/") for name in request.headers.get("if-none-match", "").split(",")]
        if tag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)

    return send

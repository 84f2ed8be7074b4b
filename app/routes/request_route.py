"""A route whose function takes the request and gives the response."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute


class RequestRoute(APIRoute):
    """Calls its function with the request alone, past FastAPI's parameters, dependencies and response models.

    The routes that take images read their own bodies, because a body is JSON, a form or a photo and is counted as
    it arrives; what FastAPI would do besides costs a fifth of such a request's time outside decoding and
    inference. The OpenAPI document is made from the decorator as ever.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `fastapi.routing.APIRoute`."""
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler

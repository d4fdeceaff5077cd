"""The routes as an application: Starlette, with a short cut for claims."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route, request_response

from pythonricing.counting.model import DEFAULT
from pythonricing.web.claim import Claim
from pythonricing.web.problems import HANDLERS, Problem
from pythonricing.web.receive import check_query

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from starlette.types import ASGIApp, Receive, Scope, Send

    from pythonricing.web.openapi import Operation
    from pythonricing.web.parts import Parts


class Application(Starlette):
    """The service over HTTP.

    Claims skip Starlette's middleware and router, which would cost each 4.5 us: as much as the claim itself.
    """

    def __init__(
        self,
        parts: Parts,
        operations: Sequence[Operation],
        lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]],
    ) -> None:
        self.parts = parts
        self.operations = operations
        self._claim = Claim(parts)
        #: The claims' methods with their paths, where they name no counter, and with what stands before the name.
        self._claims: set[tuple[str, str]] = set()
        self._named_claims: set[tuple[str, str]] = set()
        methods: dict[str, dict[str, ASGIApp]] = {}
        for operation in operations:
            at = methods.setdefault(operation.path, {})
            if operation.endpoint is Claim:
                head, slash, name = operation.path.rpartition("/")
                if not parts.allowed_origins:  # whose pages need what the middleware says
                    (self._named_claims if name else self._claims).add((operation.method, head + slash))
                at[operation.method] = self._claim
            else:
                at[operation.method] = request_response(operation.endpoint)  # type: ignore[arg-type]
        super().__init__(
            routes=[Route(path, ByMethod(at)) for path, at in methods.items()],
            exception_handlers=HANDLERS,
            middleware=[Middleware(CORSMiddleware, **_cors(parts.allowed_origins))] if parts.allowed_origins else None,
            lifespan=lifespan,
        )
        self.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope.get("root_path"):
            method, path = scope["method"], scope["path"]
            if (method, path) in self._claims:
                await self._claim.answer(scope, receive, send, DEFAULT)
                return
            head, slash, name = path.rpartition("/")
            if name and (method, head + slash) in self._named_claims:
                await self._claim.answer(scope, receive, send, name)
                return
        await super().__call__(scope, receive, send)


def _cors(allowed_origins: Collection[str]) -> dict[str, Any]:
    return {
        "allow_origins": allowed_origins,
        "allow_methods": ["GET", "POST", "PUT", "DELETE"],
        "allow_headers": ["Authorization", "Content-Type", "Idempotency-Key"],
        "expose_headers": ["RateLimit", "RateLimit-Policy", "Retry-After"],
    }


class ByMethod:
    """The endpoints of one path.

    HEAD is answered as GET is, unless it has an endpoint of its own, and OPTIONS with what there is.
    """

    def __init__(self, methods: Mapping[str, ASGIApp]) -> None:
        self._methods = {**({"HEAD": methods["GET"]} if "GET" in methods else {}), **methods}
        self._allow = {"allow": ", ".join(sorted([*self._methods, "OPTIONS"]))}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        check_query(scope["query_string"])
        method = scope["method"]
        endpoint = self._methods.get(method)
        if endpoint is None:
            if method != "OPTIONS":
                raise Problem(405, "Method not allowed", "this method is not allowed here", headers=self._allow)
            endpoint = Response(status_code=204, headers=self._allow)
        await endpoint(scope, receive, send)

"""What stands before every route: host, origin, rate and token are checked, requests timed, failures answered."""

import hmac
import ipaddress
import logging
import secrets
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlprompt.experiments.server.limits import RateLimiter, RefusedError
from vlprompt.experiments.server.metrics import Metrics

LOG = logging.getLogger("vlprompt.server")
OPEN_PATHS = ("/", "/health")  # hold no secret; the page asks for the token
HTTP_METHODS = ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH")
CLIENT_GONE_STATUS = 499
SAFE_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Args:
        token: that clients must send; None for none.
        loopback_only: the server listens on this machine alone, so that requests to another name are refused: a web
            page whose name was pointed here (DNS rebinding) sends these.
    """

    token: str | None = None
    loopback_only: bool = True

    def require(self, headers: Headers, path: str) -> None:
        """Raise RefusedError for a foreign host or origin (421, 403), or a wrong token (401)."""
        host = headers.get("host", "")
        if self.loopback_only and not is_loopback(_strip_port(host)):
            raise RefusedError(
                421, f"Host: expected localhost or an address of this machine, got {host[:100]!r}. Use 127.0.0.1."
            )
        origin = headers.get("origin")
        if origin is not None and _find_host(origin) != host:
            raise RefusedError(403, "Origin: expected a request of this server's page, got one of another site.")
        if self.token is None or path in OPEN_PATHS:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self.token.encode()):
            raise RefusedError(
                401,
                "Authorization: expected 'Bearer' and the token of this server, got none or another.",
                {"WWW-Authenticate": "Bearer"},
            )


def _find_host(origin: str) -> str | None:
    """Return the host and port of an origin, None where it is no address."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _strip_port(host: str) -> str:
    name, separator, port = host.rpartition(":")
    return (name if separator and port.isdecimal() else host).lower().strip("[]")


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """ASGI middleware around all routes.

    Args:
        app: the routes.
        access: who may ask.
        limiter: how often a client may.
        metrics: counts requests.
    """

    def __init__(self, app: ASGIApp, access: Access, limiter: RateLimiter, metrics: Metrics):
        self.app, self.access, self.limiter, self.metrics = app, access, limiter, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), CLIENT_GONE_STATUS

        async def send_answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self.limiter.take((scope.get("client") or ("unknown",))[0])
            self.access.require(Headers(scope=scope), scope["path"])
            await self.app(scope, receive, send_answer)
        except RefusedError as error:
            await make_error_response(error)(scope, receive, send_answer)
        except ClientDisconnect:
            pass
        except Exception as error:
            await make_error_response(report_failure(error))(scope, receive, send_answer)
        finally:
            method = scope["method"] if scope["method"] in HTTP_METHODS else "other"
            route = getattr(scope.get("route"), "path", "unmatched")
            self.metrics.count_request(method, route, status, time.perf_counter() - began)


def report_failure(error: BaseException) -> RefusedError:
    """Log an error that no client has caused, and return what the client may know of it: an id."""
    error_id = secrets.token_hex(4)
    LOG.error("error %s", error_id, exc_info=error)
    return RefusedError(500, f"server: expected an answer, got an internal error; its log names it {error_id}.")


def make_error_response(error: RefusedError) -> JSONResponse:
    """Return the answer to a refused request: {"error": sentence}."""
    return JSONResponse({"error": error.message}, error.status, error.headers)

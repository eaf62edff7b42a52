"""The HTTP routes of a server of learned prompts."""

import base64
import hashlib
import html
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from vlprompt.experiments.server import answers, uploads
from vlprompt.experiments.server.guard import Guard, make_error_response
from vlprompt.experiments.server.limits import RateLimiter, RefusedError
from vlprompt.experiments.server.service import Server

DESCRIPTION = "Answers of learned prompts on a frozen vision-language model."
INLINE_PARTS = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def build_app(server: Server) -> FastAPI:
    """Return the application that answers by a server; it closes the server when it ends."""

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        yield
        server.close()

    # the usual pages of the documentation load scripts from elsewhere
    app = FastAPI(title="vlprompt", description=DESCRIPTION, docs_url=None, redoc_url=None, lifespan=run)
    app.add_middleware(
        Guard,
        access=server.settings.access,
        limiter=RateLimiter(server.settings.limits.rate),
        metrics=server.metrics,
    )
    app.add_exception_handler(RefusedError, _answer_refusal)
    app.add_exception_handler(HTTPException, _answer_refusal)
    app.add_exception_handler(RequestValidationError, _answer_refusal)
    _add_prediction_routes(app, server)
    _add_model_routes(app, server)
    _add_pages(app, server)
    return app


async def _answer_refusal(request: Request, error: Exception) -> JSONResponse:
    path = repr(request.url.path[:200])
    if isinstance(error, HTTPException):
        headers = dict(error.headers or {})
        allowed = headers.get("Allow")
        difference = (
            f"the method {allowed}, got {request.method[:20]!r}" if allowed else "a path of this server, got another"
        )
        message = f"{path}: expected {difference}. GET /docs lists them."
        error = RefusedError(error.status_code, message, headers)
    elif not isinstance(error, RefusedError):
        error = RefusedError(422, f"{path}: expected a whole number at its end, got something else. Number it from 0.")
    return make_error_response(error)


def _describe_body(*schemas: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what OpenAPI says of a body that the route reads by itself, within the limits."""
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema} for kind, schema in schemas}}}


def _describe_predict_body() -> dict[str, Any]:
    form = uploads.PredictSettings.model_json_schema()
    form["properties"]["image"] = {"type": "array", "items": {"type": "string", "format": "binary"}}
    return _describe_body(("multipart/form-data", form), ("application/json", uploads.PredictBody.model_json_schema()))


def _add_prediction_routes(app: FastAPI, server: Server) -> None:
    @app.post("/predict", openapi_extra=_describe_predict_body())
    async def predict(request: Request) -> answers.PredictAnswer:
        """Answer images: files of a multipart form, or base64 in JSON."""
        return await server.predict(request)

    @app.get("/neighbours/{model}/{index}", response_class=Response)
    async def draw_neighbour(model: str, index: int) -> Response:
        """Return the thumbnail of a training image as PNG."""
        images = server.training_images.get(server.find_model(model).name)
        if images is None or not 0 <= index < len(images.items):
            raise RefusedError(404, "neighbours: expected a training image of the model, got none.")
        return Response(await server.run(images.draw_thumbnail, index), media_type="image/png")

    @app.get("/health")
    async def report_health() -> answers.Health:
        """Return whether the server answers."""
        return answers.Health(status="ok", models=len(server.models.by_name))

    @app.get("/metrics", response_class=PlainTextResponse)
    async def report_metrics() -> PlainTextResponse:
        """Return counts and times, for Prometheus."""
        gauges = {
            "vlprompt_queued_images": ("Images that wait for the model.", float(server.worker.n_queued)),
            "vlprompt_models": ("Models that are loaded.", float(len(server.models.by_name))),
        }
        return PlainTextResponse(server.metrics.format(gauges), media_type="text/plain; version=0.0.4")


def _add_model_routes(app: FastAPI, server: Server) -> None:
    @app.get("/models")
    async def list_models() -> list[answers.Model]:
        """List the models."""
        return [server.describe_model(model) for model in server.models.by_name.values()]

    model_body = ("application/json", answers.ModelBody.model_json_schema())

    @app.post("/models", openapi_extra=_describe_body(model_body))
    async def add_model(request: Request) -> answers.Model:
        """Load a run or model folder, or put it in the place of the model of this name."""
        return server.describe_model(await server.load_model(await server.read_json(request, answers.ModelBody)))

    @app.delete("/models/{name}")
    async def remove_model(name: str) -> answers.Health:
        """Remove a model; requests that run are answered."""
        server.remove_model(name)
        return answers.Health(status="ok", models=len(server.models.by_name))

    @app.get("/classes")
    async def list_classes() -> list[answers.ClassList]:
        """List the classes of each model, and the lists that were stored."""
        return [
            answers.ClassList(model=model.name, id=list_id, classes=list(map(str, names)))
            for model in server.models.by_name.values()
            for list_id, names in (("", model.prompt.names), *model.class_lists.items())
        ]

    classes_body = ("application/json", answers.ClassesBody.model_json_schema())

    @app.post("/classes", openapi_extra=_describe_body(classes_body))
    async def store_classes(request: Request) -> answers.ClassList:
        """Store classes that a model reads by name; its id is what `classes_id` of /predict takes."""
        return await server.store_classes(await server.read_json(request, answers.ClassesBody))


def _add_pages(app: FastAPI, server: Server) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def show_page() -> HTMLResponse:
        text, policy = read_page()
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def show_routes() -> HTMLResponse:
        return HTMLResponse(list_routes(app), headers={"Content-Security-Policy": "default-src 'none'"})


@cache
def read_page() -> tuple[str, str]:
    """Return the page, and a content policy under which only its own script and style run."""
    text = files("vlprompt.experiments.server").joinpath("page.html").read_text("utf-8")
    hashes = {
        kind: base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        for kind, part in INLINE_PARTS.findall(text)
    }
    policy = (
        "default-src 'none'; img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'"
    )
    return text, policy


def list_routes(app: FastAPI) -> str:
    """Return a page that lists the routes, without scripts; /openapi.json has all of it for programs."""
    rows = "".join(
        f"<tr><td><code>{method.upper()} {html.escape(path)}</code></td>"
        f"<td>{html.escape(operation.get('description', ''))}</td></tr>"
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        '<title>vlprompt: routes</title><h1>Routes</h1><p>Described for programs by <a href="/openapi.json">'
        f"openapi.json</a>.</p><table>{rows}</table></html>"
    )

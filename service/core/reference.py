"""``/docs``: Swagger UI from files of this installation. The page loads nothing from another host, and may not."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse, Response

FILES = Path(str(files("fastapi_swagger"))) / "resources"
SHOWN = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TROLL: API reference</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<noscript>This page needs JavaScript; what it shows is <a href="openapi.json">openapi.json</a>.</noscript>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/page.js"></script>
</body>
</html>
"""
SCRIPT = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis],
  validatorUrl: null,
});
"""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
"""``data:`` are the icons in the style sheet."""


def install(app: FastAPI) -> None:
    def page() -> HTMLResponse:
        return HTMLResponse(PAGE, headers=HEADERS)

    def script() -> Response:
        return Response(SCRIPT, media_type="text/javascript", headers=HEADERS)

    app.add_api_route("/docs", page, include_in_schema=False)
    app.add_api_route("/docs/page.js", script, include_in_schema=False)
    for name in SHOWN:
        app.add_api_route(f"/docs/{name}", _file(FILES / name), include_in_schema=False)


def _file(path: Path) -> Callable[[], FileResponse]:
    def file() -> FileResponse:
        return FileResponse(path, headers=HEADERS)

    return file

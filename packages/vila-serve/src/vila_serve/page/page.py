"""The chat page as a part of a server."""

# gradio is not installed where the types are checked.
# pyright: reportUnknownParameterType=false

import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from vila_core.plugins.lazy import optional_import
from vila_serve.page.pictures import MAX_STORED_BYTES
from vila_serve.page.question import Answers, PageModel
from vila_serve.page.routes import PageRoute
from vila_serve.settings import ServeSettings

with optional_import("The chat page", "vila-serve[page]", "gradio"):
    import gradio as gr  # pyright: ignore[reportMissingImports] - installed with the extra only
    from gradio.themes import Base  # pyright: ignore[reportMissingImports]

    from vila_serve.page.events import Events
    from vila_serve.page.parts import EXAMPLES, Parts

HERE = Path(__file__).parent
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans SC", "PingFang SC", "Microsoft YaHei", "sans-serif")
MONOSPACED = ("ui-monospace", "SF Mono", "Consolas", "monospace")
KEEP_SECONDS = 24 * 60 * 60
"""Uploaded files are deleted after a day."""
ON_LOAD = """() => {
    const chosen = localStorage.getItem("vila-theme");
    if (chosen) document.body.classList.toggle("dark", chosen === "dark");
}"""
HEAD = '<meta name="viewport" content="width=device-width, initial-scale=1">'


def add_page(app: FastAPI, answers: Answers, model: PageModel, settings: ServeSettings) -> None:
    """Serve the chat page at `/` of `app`. Call it after all other routes have been added.

    Args:
        app: gets the page's routes.
        answers: answers the questions.
        model: what the page says of the model.
        settings: of the server.

    Raises:
        MissingDependencyError: the extra `page` is not installed.
    """
    uploads = Path(tempfile.mkdtemp(prefix="vila-serve-"))  # for this user only
    # Gradio takes the folder for uploads, and whether to report usage, from the environment only.
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    max_upload = settings.max_request_bytes * 3 // 4  # as much as a request holds in base64
    holder = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    gr.mount_gradio_app(
        holder,
        build_page(answers, model, settings, uploads),
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[str(EXAMPLES)],
        max_file_size=max_upload,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        show_error=True,
        theme=_theme(),
        css_paths=HERE / "style.css",
        head=HEAD,
        js=ON_LOAD,
    )
    app.router.routes.append(
        PageRoute(
            holder,
            uploads=uploads,
            folders=[EXAMPLES],
            max_upload_bytes=max_upload,
            max_stored_bytes=max(MAX_STORED_BYTES, 4 * max_upload),
        )
    )
    outer = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def life(running: FastAPI) -> AsyncGenerator[Any]:
        try:
            async with outer(running) as state, holder.router.lifespan_context(holder):
                yield state
        finally:
            shutil.rmtree(uploads, ignore_errors=True)

    app.router.lifespan_context = life


def _theme() -> Base:
    return Base(
        primary_hue="teal", neutral_hue="zinc", radius_size="lg", spacing_size="md", font=FONTS, font_mono=MONOSPACED
    )


def build_page(answers: Answers, model: PageModel, settings: ServeSettings, uploads: Path) -> gr.Blocks:
    """Return the page.

    Args:
        answers: answers the questions.
        model: what the page says of the model.
        settings: of the server.
        uploads: where Gradio keeps what users upload.
    """
    with gr.Blocks(title=f"{model.name} · VILA Kit", fill_width=True, delete_cache=(600, KEEP_SECONDS)) as page:
        parts = Parts.build(model, settings)
        Events(parts, answers, uploads.resolve()).connect(page)
    most = settings.replicas * (settings.max_batch + settings.max_queue)
    page.queue(default_concurrency_limit=None, max_size=4 * most)
    return page

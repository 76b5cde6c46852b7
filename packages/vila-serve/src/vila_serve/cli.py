"""`vila-serve`: serve a model behind an OpenAI-compatible API. `vila serve` is the same program."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import vila_serve
from vila_core.cli.option_groups import with_option_groups
from vila_core.cli.options import MODEL, OTHER, Debug, Plugin, load_plugin_files, name_embedded_model, version_option
from vila_core.cli.progress import show_phases
from vila_core.cli.run import run
from vila_serve.contract.command import check_contract

if TYPE_CHECKING:
    from socket import socket

    from vila_serve.answering import Answering
    from vila_serve.answering.process import EngineProcess
    from vila_serve.settings import ServeSettings

HELP = """
Serve a VILA model: an OpenAI-compatible API under /v1, and its documentation at /docs. Without a model, the small
embedded one answers, which only knows drawn shapes.

Every option is also an environment variable: VILA_PORT is --port.

[bold]Examples[/bold]

vila-serve --port 8000

vila-serve --model-path Efficient-Large-Model/NVILA-8B --host 0.0.0.0

VILA_API_KEY=… vila-serve -m runs/nvila-8b-awq --max-batch 32 --max-context 8192

vila-serve contract --base-url http://localhost:8000/v1 [dim]# check any server of OpenAI's API[/dim]

vila-serve --allow-domain upload.wikimedia.org [dim]# also fetch images from this host, over https[/dim]
"""

_network = partial(typer.Option, rich_help_panel="Network", show_default=False)
_model = partial(typer.Option, rich_help_panel=MODEL, show_default=False)
_limit = partial(typer.Option, rich_help_panel="Limits", show_default=False)
_other = partial(typer.Option, rich_help_panel=OTHER, show_default=False)


@dataclass(frozen=True)
class NetworkOptions:
    """Where the server listens, and whom it lets in."""

    host: Annotated[
        str | None, _network("--host", metavar="NAME", help="Address to listen on; 0.0.0.0 for all (127.0.0.1).")
    ] = None
    port: Annotated[int | None, _network("--port", "-p", help="Port; 0 chooses a free one (8000).")] = None
    api_key: Annotated[
        str | None,
        _network("--api-key", metavar="KEY", help="Key that clients must send; VILA_API_KEY keeps it out of `ps`."),
    ] = None
    allow_domain: Annotated[
        list[str] | None,
        _network(
            "--allow-domain",
            metavar="NAME",
            help="Host from which media may be fetched; .example.org allows subdomains. Repeat it for several.",
        ),
    ] = None
    cors_origin: Annotated[
        list[str] | None,
        _network(
            "--cors-origin", metavar="URL", help="Web page whose scripts may call the API. Repeat it for several."
        ),
    ] = None
    page: Annotated[bool | None, _network("--page/--no-page", help="Serve the chat page (yes).")] = None


@dataclass(frozen=True)
class ModelOptions:
    """Which model to load, and how."""

    model_path: Annotated[
        str | None,
        _model("--model-path", "-m", metavar="MODEL", help="Folder or hub id. Default: vila-tiny, the demo model."),
    ] = None
    model_name: Annotated[
        str | None, _model("--model-name", metavar="NAME", help="What clients call it (the name of the checkpoint).")
    ] = None
    conv_mode: Annotated[
        str | None,
        _model("--conv-mode", "-c", metavar="NAME", help="Chat template; auto uses the checkpoint's own (auto)."),
    ] = None
    lora_path: Annotated[
        str | None, _model("--lora-path", "-l", metavar="FOLDER", help="LoRA adapter to merge into the model.")
    ] = None
    revision: Annotated[str | None, _model("--revision", metavar="NAME", help="Branch, tag or commit of a hub id.")] = (
        None
    )
    offline: Annotated[bool | None, _model("--offline", metavar="", help="Only use the hub's cache.")] = None
    device: Annotated[str | None, _model("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N (auto).")] = None
    device_map: Annotated[
        str | None, _model("--device-map", metavar="NAMES", help="auto, or the GPUs to use: cuda:0,cuda:1.")
    ] = None
    dtype: Annotated[
        str | None, _model("--dtype", metavar="NAME", help="auto, float32, bfloat16 or float16 (auto).")
    ] = None


@dataclass(frozen=True)
class LimitOptions:
    """How much the server does at once."""

    replicas: Annotated[
        int | None, _limit("--replicas", metavar="N", help="Processes, each with its own model; needs Ray (1).")
    ] = None
    max_batch: Annotated[int | None, _limit("--max-batch", help="Requests to answer at the same time (64).")] = None
    max_queue: Annotated[int | None, _limit("--max-queue", help="Requests that may wait (128).")] = None
    max_context: Annotated[
        int | None, _limit("--max-context", help="Most tokens in a prompt and its answer (the model's context).")
    ] = None
    max_tokens: Annotated[
        int | None, _limit("--max-tokens", help="Longest answer in tokens, whatever a request asks for.")
    ] = None
    max_request_bytes: Annotated[
        int | None, _limit("--max-request-bytes", help="Largest request in bytes, including media (67,108,864).")
    ] = None
    cache_bytes: Annotated[int | None, _limit("--cache-bytes", help="Bytes of memory for the KV cache.")] = None
    kv_cache_dtype: Annotated[
        str | None,
        _limit("--kv-cache-dtype", metavar="NAME", help="auto, or fp8: nearly twice the tokens in its memory (auto)."),
    ] = None
    warm_up: Annotated[
        bool | None,
        _limit(
            "--warm-up/--no-warm-up", help="On a GPU, compile and capture all sizes before requests come (warm up)."
        ),
    ] = None
    shutdown_timeout: Annotated[
        int | None,
        _limit("--shutdown-timeout", metavar="SECONDS", help="How long running requests may finish on shutdown (60)."),
    ] = None


app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.callback(invoke_without_command=True, help=HELP)
@with_option_groups
def serve(
    context: typer.Context,
    network: NetworkOptions,
    model: ModelOptions,
    limits: LimitOptions,
    workers: Annotated[int | None, _other("--workers", hidden=True)] = None,
    log_level: Annotated[
        str | None, _other("--log-level", metavar="NAME", help="critical, error, warning, info or debug (info).")
    ] = None,
    log_format: Annotated[
        str | None, _other("--log-format", metavar="NAME", help="text, or json: one object per line (text).")
    ] = None,
    otlp_endpoint: Annotated[
        str | None, _other("--otlp-endpoint", metavar="URL", help="OpenTelemetry collector to send traces to.")
    ] = None,
    plugin: Plugin = None,
    version: Annotated[bool, version_option(vila_serve.__version__)] = False,
    debug: Debug = False,
) -> None:
    """Serve a model."""
    if context.invoked_subcommand is not None:
        return
    load_plugin_files(plugin)
    given: dict[str, Any] = {**asdict(network), **asdict(model), **asdict(limits)}
    given |= {"workers": workers, "log_level": log_level, "log_format": log_format}
    given |= {"otlp_endpoint": otlp_endpoint}
    given |= {"allow_domains": given.pop("allow_domain"), "cors_origins": given.pop("cors_origin")}
    _run({name: value for name, value in given.items() if value is not None}, plugin or ())


app.command("contract")(check_contract)


def _run(given: dict[str, Any], plugin_files: Sequence[Path]) -> None:
    from vila_serve.settings import ServeSettings  # imported here because of pydantic, so that --help is fast

    settings = ServeSettings.read(
        {name: ",".join(value) if isinstance(value, list) else value for name, value in given.items()}
    )
    # imported here, after the settings have been checked
    from vila_serve import server
    from vila_serve.answering.process import EngineProcess
    from vila_serve.loading import loading_task

    bound = server.bind(settings)
    if settings.replicas > 1:
        name = settings.model_path or "vila-tiny"
        server.serve_replicas(settings, bound, lambda: _announce(settings, name, bound), plugin_files)
        return
    name_embedded_model(settings.model_path, "--model-path")
    with EngineProcess(loading_task(settings, plugin_files)) as process:
        from vila_serve.api.app import create_app  # imported here, while the process loads the model

        answering = _wait(process, settings)
        served = create_app(answering, settings)
        _announce(settings, answering.model.name, bound)
        server.serve(served, settings, bound, answering)


def _announce(settings: "ServeSettings", name: str, bound: "socket") -> None:
    from vila_serve import server

    typer.echo(f"Serving {settings.model_name or name} at {server.address_of(bound)}/v1", err=True)


def _wait(process: "EngineProcess", settings: "ServeSettings") -> "Answering":
    """Show the progress of loading and warming up."""
    label = settings.model_path or "the embedded model"
    with show_phases(f"Loading {label}") as show:

        def report(done: int, total: int) -> None:
            unit, size = ("GB", 1e9) if total >= 1e9 else ("MB", 1e6)
            show(f"Loading {label}: {done / size:.1f} of {total / size:.1f} {unit}")

        return process.wait_until_ready(report, lambda: show(f"Warming up {label}"))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `vila-serve` with `arguments` (default: those of the process) and exit."""
    run(app, "vila-serve", arguments)

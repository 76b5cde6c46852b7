"""Settings of the server: from the command line, then the environment (`VILA_PORT` is `port`), then the defaults."""

import difflib
import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, PositiveInt, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from vila_core.errors import ConfigError, ValidationProblem, shown, unknown_name, validation_problems, warn
from vila_core.media.limits import check_host

PREFIX = "VILA_"
MIB = 1024 * 1024
LogLevel = Literal["critical", "error", "warning", "info", "debug"]
LogFormat = Literal["text", "json"]

OTHER_NAMES = {
    "model": "Use model_path (VILA_MODEL_PATH, --model-path).",
    "served_model_name": "Use model_name (VILA_MODEL_NAME, --model-name).",
    "max_model_len": "Use max_context (VILA_MAX_CONTEXT, --max-context).",
    "max_num_seqs": "Use max_batch (VILA_MAX_BATCH, --max-batch).",
    "chat_template": "Use conv_mode (VILA_CONV_MODE, --conv-mode).",
}
"""Names that other servers use -> what to use instead."""


def _split(value: object) -> object:
    """Split the text of an environment variable at commas."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _check_key(key: SecretStr | None) -> SecretStr | None:
    if key is None:
        return None
    text = key.get_secret_value()
    if not text.strip():
        raise ValueError("is empty; leave it out to serve without a key")
    if text != text.strip() or not text.isprintable() or not text.isascii():
        raise ValueError("must be printable ASCII without spaces around it, so that clients can send it in a header")
    return key


def _check_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(check_host, hosts))


def _check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    """Return the origins as browsers send them. One that is written otherwise would match none."""
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"has {shown(origin)}: expected an origin such as 'https://example.org', without a path")
    return origins


def _check_url(url: str) -> str:
    if not _URL.match(url):
        raise ValueError("must be a URL such as http://localhost:4318/v1/traces")
    return url


_URL = re.compile(r"https?://[^\s/]")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._\[\]:-]+")
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""Texts; in the environment, separated by commas."""


class ServeSettings(BaseSettings):
    """How to serve a model. Each field is also an environment variable, such as VILA_MAX_BATCH.

    Attributes:
        host: address to listen on. 127.0.0.1 accepts this machine only, 0.0.0.0 every machine that reaches it.
        port: to listen on; 0 chooses a free one.
        model_path: folder or hub id of a checkpoint; None serves the embedded demo model.
        model_name: what clients call the model; None for the name of the checkpoint.
        conv_mode: chat template; auto uses the checkpoint's own.
        lora_path: LoRA adapter to merge into the model.
        revision: branch, tag or commit of a hub id.
        offline: only use what is in the hub's cache.
        device, device_map, dtype: as in `vila_core.load`.
        replicas: how many processes with a model each answer the requests, on this machine or a Ray cluster.
        max_batch: requests that are answered together, by each replica.
        max_queue: requests that may wait for that; one more is refused with status 429.
        max_context: most tokens of a prompt with its answer; None for the model's context.
        max_tokens: longest answer that a request gets, whatever it asks for; None for what the context holds.
        max_choices: most answers (`n`) of one request.
        max_media: most images and videos of one request.
        max_pictures: most pictures (`n`) that one request may ask to draw.
        cache_bytes: memory of the KV cache; None as in `vila_core.EngineConfig`.
        kv_cache_dtype: "auto" or "fp8", as in `vila_core.EngineConfig`.
        warm_up: compile kernels and capture CUDA graphs for all sizes before the server is ready. Otherwise the first
            requests of each size wait for that.
        default_max_tokens, default_temperature, default_top_p: for requests that do not set them. The defaults are
            those of VILA's own server.
        api_key: what clients must send as `Authorization: Bearer KEY` on every route but /health; None lets all in.
        allow_domains: hosts from which images and videos may be fetched; a leading dot allows subdomains. Without
            any, requests must carry their media as data: URIs.
        cors_origins: web pages, such as https://example.org, whose scripts may call the API.
        max_request_bytes: largest body of a request.
        max_buffered_bytes: of the bodies of all requests together.
        body_timeout: seconds in which a request must arrive completely.
        shutdown_timeout: seconds that running requests get to finish when the server stops.
        page: serve the chat page, if vila-serve is installed with the extra `page`.
        workers: VILA_WORKERS of VILA's own server; one process answers all requests here.
        log_level: least severe messages of the log.
        log_format: text for people, json for log collectors: one object per line.
        otlp_endpoint: OpenTelemetry collector that gets a trace of each request, such as
            http://localhost:4318/v1/traces. It needs the extra `tracing`.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", protected_namespaces=(), env_ignore_empty=True
    )

    host: str = Field(default="127.0.0.1", min_length=1, max_length=255)
    port: int = Field(default=8000, ge=0, le=65535)
    model_path: str | None = None
    model_name: str | None = Field(default=None, min_length=1, max_length=200)
    conv_mode: str = "auto"
    lora_path: str | None = None
    revision: str | None = None
    offline: bool = False
    device: str = "auto"
    device_map: str | None = None
    dtype: str = "auto"
    replicas: int = Field(default=1, ge=1, le=1000)
    max_batch: int = Field(default=64, ge=1, le=1024)
    max_queue: int = Field(default=128, ge=0, le=100_000)
    max_context: int | None = Field(default=None, ge=2)
    max_tokens: PositiveInt | None = None
    max_choices: int = Field(default=8, ge=1, le=128)
    max_media: int = Field(default=64, ge=0, le=10_000)
    max_pictures: int = Field(default=10, ge=1, le=10)
    cache_bytes: PositiveInt | None = None
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    warm_up: bool = True
    default_max_tokens: PositiveInt = 512
    default_temperature: float = Field(default=0.2, ge=0, le=2)
    default_top_p: float = Field(default=0.9, gt=0, le=1)
    api_key: Annotated[SecretStr | None, AfterValidator(_check_key)] = None
    allow_domains: Annotated[Names, AfterValidator(_check_hosts)] = ()
    cors_origins: Annotated[Names, AfterValidator(_check_origins)] = ()
    max_request_bytes: int = Field(default=64 * MIB, ge=1024)
    max_buffered_bytes: int = Field(default=1024 * MIB, ge=1024)
    body_timeout: PositiveFloat = 60.0
    shutdown_timeout: int = Field(default=60, ge=0)
    page: bool = True
    workers: int = Field(default=1, ge=1, le=1)
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"
    otlp_endpoint: Annotated[str, AfterValidator(_check_url)] | None = None

    @property
    def places(self) -> int:
        """How many answers may be in progress or wait, in one replica."""
        return self.max_batch + self.max_queue

    @property
    def wants_page(self) -> bool:
        """Whether to serve the chat page: it is on, and installed or asked for by name."""
        return self.page and ("page" in self.model_fields_set or find_spec("gradio") is not None)

    @classmethod
    def read(cls, given: Mapping[str, Any] | None = None) -> Self:
        """Return the settings `given`, the others from the environment.

        Raises:
            ConfigError: a setting is unknown or out of range. The message names the setting, where it came from, the
                value and what is allowed.
        """
        _warn_about_misspelled_variables()
        singular = {name: variable for name, variable in _singular_variables().items() if name not in (given or {})}
        given = {**{name: os.environ[variable] for name, variable in singular.items()}, **(given or {})}
        if "api_key" not in given and os.environ.get(f"{PREFIX}API_KEY") == "":
            raise ConfigError(f"{PREFIX}API_KEY is empty, which would let everybody in. Set a key, or unset it.")
        for name in given:
            if name not in cls.model_fields:
                raise ConfigError(unknown_name("setting of the server", name, cls.model_fields, OTHER_NAMES))
        try:
            return cls(**given)
        except ValidationError as error:
            raise ConfigError(_explain(validation_problems(error)[0], given, singular)) from None


def _explain(problem: ValidationProblem, given: Mapping[str, Any], singular: Mapping[str, str]) -> str:
    """Return a sentence that names the setting as the user wrote it. The value of a key is not shown."""
    name = problem.path.partition(".")[0]
    variable = PREFIX + name.upper()
    label = f"--{name.replace('_', '-')}" if name in given or variable not in _environment() else variable
    label = singular.get(name, label)
    label = {"--allow-domains": "--allow-domain", "--cors-origins": "--cors-origin"}.get(label, label)
    if name == "workers":
        return (
            f"{label} is {shown(problem.value)}, but one process answers all requests here, many at a time "
            "(--max-batch). Remove it, or use --replicas."
        )
    got = "" if name == "api_key" or problem.message.startswith("has ") else f", got {shown(problem.value)}"
    joint = " " if problem.message.startswith(("must ", "is ", "has ")) else ": "
    return f"{label}{joint}{problem.message}{got}."


def _environment() -> set[str]:
    return {name.upper() for name in os.environ}


def _singular_variables() -> dict[str, str]:
    """Return lists that a variable sets which is named as their option: VILA_ALLOW_DOMAIN for allow_domains."""
    names = {f"{PREFIX}{name.upper().removesuffix('S')}": name for name in ("allow_domains", "cors_origins")}
    return {name: variable for variable, name in names.items() if os.environ.get(variable)}


def _warn_about_misspelled_variables() -> None:
    """Warn about variables that look like settings but are not: a server that ignores them has other limits."""
    for variable in os.environ:
        name = variable.removeprefix(PREFIX).lower()
        if variable == name or name in (*ServeSettings.model_fields, "allow_domain", "cors_origin"):
            continue
        nearest = difflib.get_close_matches(name, ServeSettings.model_fields, n=1, cutoff=0.8)
        if name in OTHER_NAMES or nearest:
            hint = OTHER_NAMES.get(name) or f"Did you mean {PREFIX}{nearest[0].upper()}?"
            warn(f"The environment variable {variable} is not a setting of the server. {hint}")

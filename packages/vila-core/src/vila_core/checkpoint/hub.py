"""Checkpoints on the Hugging Face hub: downloaded to its cache as a snapshot, without code.

huggingface_hub resumes and verifies downloads; its errors become `CheckpointError`s that say what to do.
"""

import errno
import re
from pathlib import Path
from typing import cast

from vila_core.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")

_HUBS = ("huggingface.co", "www.huggingface.co", "hf.co", "hf-mirror.com")

OWNER = "Efficient-Large-Model"
"""Of the released VILA checkpoints on the hub."""

WANTED = (
    "*.safetensors",
    "*-w*-g*-awq*.pt",
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "README.md",
    "LICENSE*",
    "MODEL_LICENSE*",
    "NOTICE*",
    "non_lora_trainables.bin",
)
"""Weights (TinyChat's are pickles, read weights-only), configs, tokenizers, licenses, and parts of LoRA adapters."""

PICKLES = ("*.bin",)
"""Downloaded only if a repository has no safetensors; they are read weights-only."""

UNWANTED = ("*.py", "*.pyc", "*trainer_state.json", "*training_args*", "*optimizer*", "*scheduler*", "global_step*")
"""Code, which is never run and never downloaded, and files of the training run."""


def is_hub_id(text: str) -> bool:
    """Return whether `text` looks like `owner/name`."""
    return _HUB_ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def parse_hub_id(text: str) -> tuple[str, str | None] | None:
    """Return the hub id and revision that `text` names, None if it names none.

    Accepts `owner/name` and addresses, with or without `/tree/REVISION` or `@REVISION`:
    https://huggingface.co/owner/name, huggingface.co/owner/name, hf://owner/name.
    """
    if is_hub_id(text):
        return text, None
    scheme, _, rest = text.strip().rpartition("://")
    rest = re.split(r"[?#]", rest)[0].strip("/")
    host, _, path = rest.partition("/")
    if host.lower() in _HUBS and scheme in ("", "http", "https"):
        rest = path
    elif scheme != "hf":
        return None
    owner, name, *more = [*rest.removeprefix("models/").split("/"), ""]
    name, _, revision = name.removesuffix(".git").partition("@")
    if owner in ("datasets", "spaces", "docs", "papers", "collections"):
        return None
    if more and more[0] in ("tree", "blob", "resolve", "commit") and len(more) > 2:
        revision = more[1]
    return (f"{owner}/{name}", revision or None) if is_hub_id(f"{owner}/{name}") else None


def download(repo_id: str, *, revision: str | None = None, token: str | None = None, offline: bool = False) -> Path:
    """Return the snapshot's folder in the hub's cache, downloading missing files unless `offline`.

    Raises:
        CheckpointError: no such repository or revision, no access, no network, or (offline) nothing in the cache.
    """
    folder = _snapshot(repo_id, revision, token, offline, WANTED)
    if not any(folder.rglob("*.safetensors")):
        folder = _snapshot(repo_id, revision, token, offline, (*WANTED, *PICKLES))
    return folder


def _snapshot(repo_id: str, revision: str | None, token: str | None, offline: bool, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # The base class of errors of the HTTP library that this version of huggingface_hub uses.
    http_error = cast(type[Exception], HfHubHTTPError.__bases__[0])
    try:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                local_files_only=offline,
                allow_patterns=list(patterns),
                ignore_patterns=list(UNWANTED),
            )
        )
    except (OSError, ValueError, http_error) as error:
        raise CheckpointError(_explain(error, repo_id, revision, offline)) from None


def _explain(error: BaseException, repo_id: str, revision: str | None, offline: bool) -> str:
    """Return what went wrong and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f" at revision '{revision}'" if revision else ""
    if isinstance(error, GatedRepoError):
        return (
            f"'{repo_id}' is gated: accept its terms on the hub, then give an access token "
            "(HF_TOKEN in the environment, `hf auth login`, or token=...)."
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"No repository '{repo_id}' on the hub, or it is private. Check the spelling; for a private one, give an "
            "access token (HF_TOKEN in the environment, `hf auth login`, or token=...). "
            "A folder of that name does not exist either."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"'{repo_id}' has no revision '{revision}'. Give a branch, tag or commit of that repository."
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            fix = "Give a valid access token (HF_TOKEN, `hf auth login`, or token=...)."
            return f"The hub refused access to '{repo_id}' (HTTP {status}). {fix}"
        return f"The hub answered HTTP {status} for '{repo_id}'{at}. Try again later; what was downloaded is kept."
    if isinstance(error, LocalEntryNotFoundError):
        if isinstance(error.__cause__, HfHubHTTPError):
            return _explain(error.__cause__, repo_id, revision, offline)
        if constants.is_offline_mode() and not offline:
            return (
                f"'{repo_id}'{at} is not (or not completely) in the hub's cache, and HF_HUB_OFFLINE is set, so nothing "
                "is downloaded. Unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE), or give the folder of a checkpoint."
            )
        if offline:
            return (
                f"'{repo_id}'{at} is not (or not completely) in the hub's cache, and offline was requested. "
                "Load it once with a network connection."
            )
        return (
            f"'{repo_id}'{at} is not in the hub's cache, and the hub cannot be reached. "
            "Check the network, proxy and HF_ENDPOINT."
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"The disk is full: '{repo_id}' could not be downloaded. Free space, or set HF_HOME to a larger disk."
    return f"'{repo_id}'{at} could not be downloaded: {error}. Try again: what was downloaded is kept."

"""Loading hub ids with huggingface_hub from a local server that speaks the hub's protocol."""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote

import huggingface_hub.constants
import pytest
import torch

import vila_core as vila
from vila_core.checkpoint import open_checkpoint
from vila_core.checkpoint.hub import is_hub_id, parse_hub_id
from vila_core.errors import CheckpointError

Make = Callable[..., Path]


@dataclass
class Hub:
    """The server's content (repository -> revision -> folder) and the requests it received."""

    repositories: dict[str, dict[str, Path]] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""

    def commit(self, repository: str, revision: str) -> str | None:
        """A revision is a branch, a tag or a commit; commits are made from the folder's path."""
        for name, folder in self.repositories[repository].items():
            commit = hashlib.sha1(str(folder).encode()).hexdigest()
            if revision in (name, commit):
                return commit
        return None

    def folder(self, repository: str, commit: str) -> Path:
        folders = self.repositories[repository].values()
        return next(folder for folder in folders if hashlib.sha1(str(folder).encode()).hexdigest() == commit)

    def asked(self, part: str) -> list[tuple[str, str, str | None]]:
        return [request for request in self.requests if part in request[1]]


def handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        routes: ClassVar = [
            (re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/?]+))?(?:\?.*)?"), "info"),
            (re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/?]+)/?(?:\?.*)?"), "tree"),
            (re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)"), "file"),
        ]

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.route()

        def do_GET(self) -> None:
            self.route()

        def route(self) -> None:
            path = unquote(self.path)
            hub.requests.append((self.command, path, self.headers.get("Range")))
            for pattern, action in self.routes:
                if found := pattern.fullmatch(path):
                    repository = found.group(1)
                    if repository not in hub.repositories:
                        return self.refuse(404, "RepoNotFound", "Repository not found")
                    wanted = hub.tokens.get(repository)
                    if wanted and self.headers.get("Authorization") != f"Bearer {wanted}":
                        return self.refuse(401, None, "Invalid username or password.")
                    if repository in hub.gated:
                        return self.refuse(403, "GatedRepo", "Access to this model is restricted.")
                    commit = hub.commit(repository, found.group(2) or "main")
                    if commit is None:
                        return self.refuse(404, "RevisionNotFound", "Invalid rev id")
                    return getattr(self, action)(repository, commit, *found.groups()[2:])
            return self.refuse(404, "EntryNotFound", "no such route")

        def refuse(self, status: int, code: str | None, message: str) -> None:
            headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
            self.answer(status, json.dumps({"error": message}).encode(), headers)

        def answer(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:cut])
                if cut is not None:  # the connection drops in the middle of the file
                    self.wfile.flush()
                    self.close_connection = True

        def info(self, repository: str, commit: str) -> None:
            names = [str(path.relative_to(hub.folder(repository, commit))) for path in self.files(repository, commit)]
            content = {
                "id": repository,
                "sha": commit,
                "siblings": [{"rfilename": name} for name in names],
                "private": False,
                "tags": [],
            }
            self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def tree(self, repository: str, commit: str) -> None:
            root = hub.folder(repository, commit)
            entries = [
                {
                    "type": "file",
                    "path": str(path.relative_to(root)),
                    "size": path.stat().st_size,
                    "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
                }
                for path in self.files(repository, commit)
            ]
            self.answer(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})

        def file(self, repository: str, commit: str, name: str) -> None:
            path = hub.folder(repository, commit) / name
            if not path.is_file():
                return self.refuse(404, "EntryNotFound", "Entry not found")
            body = path.read_bytes()
            headers = {
                "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
                "X-Repo-Commit": commit,
                "Accept-Ranges": "bytes",
            }
            asked = self.headers.get("Range")
            if asked and self.command == "GET":
                start = int(asked.removeprefix("bytes=").split("-")[0])
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                return self.answer(206, body[start:], headers)
            return self.answer(200, body, headers, hub.cut.pop(name, None) if self.command == "GET" else None)

        def files(self, repository: str, commit: str) -> list[Path]:
            return sorted(path for path in hub.folder(repository, commit).rglob("*") if path.is_file())

    return Handler


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running server that huggingface_hub uses as the hub, and an empty cache."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield hub
    server.shutdown()
    server.server_close()


def test_a_hub_id_loads_and_answers(hub: Hub, make_checkpoint: Make):
    hub.repositories["tiny/nvila"] = {"main": make_checkpoint()}
    model = vila.load("tiny/nvila", device="cpu", dtype="float32")
    assert isinstance(model.generate("a small cat", max_new_tokens=3), str)
    folder = vila.load(hub.repositories["tiny/nvila"]["main"], device="cpu", dtype="float32")
    assert model.complete("a cat", max_new_tokens=5).token_ids == folder.complete("a cat", max_new_tokens=5).token_ids


def test_revisions_are_different_models(hub: Hub, make_checkpoint: Make):
    hub.repositories["tiny/nvila"] = {"main": make_checkpoint(seed=1), "v2": make_checkpoint("clip_llama", seed=2)}
    commit = hub.commit("tiny/nvila", "v2")
    assert open_checkpoint("tiny/nvila").config.vision_tower.name == "siglip"
    assert open_checkpoint("tiny/nvila", revision="v2").config.vision_tower.name == "clip"
    assert open_checkpoint("tiny/nvila", revision=commit).config.vision_tower.name == "clip"
    with pytest.raises(CheckpointError, match="no revision 'v3'"):
        open_checkpoint("tiny/nvila", revision="v3")


def test_code_and_training_files_are_not_downloaded(hub: Hub, make_checkpoint: Make):
    folder = make_checkpoint()
    for name in ("modeling_vila.py", "trainer_state.json", "optimizer.bin", "llm/pytorch_model.bin", "video.mp4"):
        (folder / name).write_text("not wanted")
    hub.repositories["tiny/nvila"] = {"main": folder}
    path = open_checkpoint("tiny/nvila").path
    fetched = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert "llm/model.safetensors" in fetched
    assert (
        not {"modeling_vila.py", "trainer_state.json", "optimizer.bin", "llm/pytorch_model.bin", "video.mp4"} & fetched
    )


def test_pickles_are_downloaded_if_there_is_nothing_else(hub: Hub, make_checkpoint: Make):
    from safetensors.torch import load_file

    folder = make_checkpoint()
    for part in ("llm", "vision_tower", "mm_projector"):
        path = folder / part / "model.safetensors"
        torch.save(load_file(path), folder / part / "pytorch_model.bin")
        path.unlink()
    hub.repositories["tiny/old"] = {"main": folder}
    assert len(open_checkpoint("tiny/old").weights.entries) > 20


def test_interrupted_download_is_resumed(hub: Hub, make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 256)  # resumes after the last chunk
    folder = make_checkpoint()
    hub.repositories["tiny/nvila"] = {"main": folder}
    hub.cut["llm/model.safetensors"] = 1000
    checkpoint = open_checkpoint("tiny/nvila")
    name = "llm/model.safetensors"
    assert (checkpoint.path / name).read_bytes() == (folder / name).read_bytes()
    ranges = [asked for command, path, asked in hub.asked(name) if command == "GET"]
    assert ranges[0] is None
    assert ranges[1] is not None
    assert ranges[1].startswith("bytes=768-")
    assert len(ranges) == 2


def test_second_load_needs_no_download_and_offline_no_network(hub: Hub, make_checkpoint: Make):
    hub.repositories["tiny/nvila"] = {"main": make_checkpoint()}
    first = open_checkpoint("tiny/nvila")
    hub.requests.clear()
    assert open_checkpoint("tiny/nvila").path == first.path
    assert not [path for command, path, _ in hub.requests if command == "GET" and "/resolve/" in path]
    hub.requests.clear()
    assert open_checkpoint("tiny/nvila", offline=True).config == first.config
    assert hub.requests == []


def test_a_private_repository_opens_with_its_token(hub: Hub, make_checkpoint: Make):
    hub.repositories["tiny/private"] = {"main": make_checkpoint()}
    hub.tokens["tiny/private"] = "hf_secret"
    assert open_checkpoint("tiny/private", token="hf_secret").format == "vila"


def test_missing_private_and_gated_repositories_say_what_to_do(hub: Hub, make_checkpoint: Make):
    with pytest.raises(CheckpointError, match=r"No repository 'tiny/nothing'.*private.*HF_TOKEN"):
        open_checkpoint("tiny/nothing")
    hub.repositories["tiny/private"] = hub.repositories["tiny/gated"] = {"main": make_checkpoint()}
    hub.tokens["tiny/private"] = "hf_secret"
    for token in (None, "hf_wrong"):
        with pytest.raises(CheckpointError, match=r"tiny/private.*HF_TOKEN"):
            open_checkpoint("tiny/private", token=token)
    hub.gated.add("tiny/gated")
    with pytest.raises(CheckpointError, match=r"'tiny/gated' is gated: accept its terms"):
        open_checkpoint("tiny/gated")


def test_offline_without_a_copy(hub: Hub, make_checkpoint: Make):
    hub.repositories["tiny/nvila"] = {"main": make_checkpoint()}
    with pytest.raises(
        CheckpointError, match=r"not \(or not completely\) in the hub's cache, and offline was requested"
    ):
        open_checkpoint("tiny/nvila", offline=True)
    assert hub.requests == []


def test_offline_by_the_environment_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        CheckpointError, match=r"HF_HUB_OFFLINE is set, so nothing is downloaded\. Unset HF_HUB_OFFLINE"
    ):
        open_checkpoint("tiny/nvila")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("owner/name", ("owner/name", None)),
        ("https://huggingface.co/owner/name", ("owner/name", None)),
        ("https://huggingface.co/owner/name/", ("owner/name", None)),
        ("https://huggingface.co/owner/name/tree/main", ("owner/name", "main")),
        ("https://huggingface.co/owner/name/tree/v1.0/llm", ("owner/name", "v1.0")),
        ("https://huggingface.co/owner/name/blob/abc123/config.json?download=true", ("owner/name", "abc123")),
        ("https://huggingface.co/owner/name.git", ("owner/name", None)),
        ("http://www.huggingface.co/owner/name#files", ("owner/name", None)),
        ("huggingface.co/owner/name", ("owner/name", None)),
        ("https://hf.co/owner/name", ("owner/name", None)),
        ("https://hf-mirror.com/owner/name", ("owner/name", None)),
        ("hf://owner/name", ("owner/name", None)),
        ("hf://owner/name@v2", ("owner/name", "v2")),
        ("hf://models/owner/name", ("owner/name", None)),
        (" https://huggingface.co/owner/name\n", ("owner/name", None)),
        ("https://huggingface.co/datasets/owner/name", None),
        ("https://huggingface.co/spaces/owner/name", None),
        ("https://huggingface.co/owner", None),
        ("https://example.com/owner/name", None),
        ("https://huggingface.co.evil.com/owner/name", None),
        ("https://huggingface.co/../name", None),
        ("ftp://huggingface.co/owner/name", None),
        ("NVILA-8B", None),
        ("", None),
    ],
)
def test_addresses_that_people_paste(address: str, found: tuple[str, str | None] | None):
    assert parse_hub_id(address) == found


def test_an_address_is_downloaded_as_its_hub_id(hub: Hub, make_checkpoint: Make):
    hub.repositories["tiny/nvila"] = {"main": make_checkpoint(), "v2": make_checkpoint("clip_llama")}
    main = open_checkpoint("https://huggingface.co/tiny/nvila")
    assert open_checkpoint("https://huggingface.co/tiny/nvila/tree/v2").config != main.config
    with pytest.raises(CheckpointError, match="names revision 'v2', but 'revision' is 'main'"):
        open_checkpoint("hf://tiny/nvila@v2", revision="main")


def test_a_bare_model_name_gets_its_owner():
    with pytest.raises(CheckpointError, match="Did you mean 'Efficient-Large-Model/NVILA-8B'"):
        open_checkpoint("NVILA-8B")


def test_errors_are_not_chained(hub: Hub):
    for name in ("tiny/nothing", "no/such/folder"):
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(name)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="the hub cannot be reached"):
        open_checkpoint("tiny/nvila")


def test_neither_folder_nor_hub_id(tmp_path: Path):
    assert is_hub_id("Efficient-Large-Model/NVILA-8B")
    for text in ("nvila", "a/b/c", "../model", "a/..", "/abs/path", "owner/name with space", "owner/na--me"):
        assert not is_hub_id(text)
        with pytest.raises(CheckpointError, match="No folder"):
            open_checkpoint(text)
    with pytest.raises(CheckpointError, match="No folder"):
        open_checkpoint(tmp_path / "owner" / "name")

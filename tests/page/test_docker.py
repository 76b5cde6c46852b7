"""The images: what their Dockerfile says, and its script, run as it is in a temporary environment."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.programs import run_program

REPOSITORY = Path(__file__).parents[2]
DOCKER = REPOSITORY / "docker"
TARGETS = ("cpu", "cuda")
Instruction = tuple[str, str]


def stages() -> dict[str, list[Instruction]]:
    """Return the instructions of each stage of the Dockerfile, those of the stages it is made from included."""
    text = re.sub(r"\\\n\s*", "", (DOCKER / "Dockerfile").read_text())
    found: dict[str, list[Instruction]] = {}
    own = list[Instruction]()
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            own = found[name] = list(found.get(base, [("FROM", base)]))
        else:
            own.append((word, rest.strip()))
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_is_slim_pinned_and_not_root(target: str):
    lines = stages()[target]
    words = [word for word, _ in lines]
    assert lines[0] == ("FROM", "${PYTHON}")
    assert re.search(
        r"^ARG PYTHON=python:3\.1[1-3]\.\d+-slim-bookworm@sha256:[0-9a-f]{64}$",
        (DOCKER / "Dockerfile").read_text(),
        re.MULTILINE,
    )
    assert [rest for word, rest in lines if word == "USER"] == ["vila"]
    assert ("COPY", f"--from=build-{target} /opt/vila /opt/vila") in lines
    assert words.index("USER") < words.index("HEALTHCHECK")
    assert "COPY" not in words[words.index("USER") :]
    (healthcheck,) = [rest for word, rest in lines if word == "HEALTHCHECK"]
    assert healthcheck.endswith('CMD ["python", "/opt/healthcheck.py"]')
    assert ("ENTRYPOINT", '["vila-serve"]') in lines
    assert not any("packages" in rest for word, rest in lines if word == "COPY"), "sources stay in the build stage"
    assert ("ADD" in words) is False


@pytest.mark.parametrize("target", TARGETS)
def test_the_build_stage_calls_exactly_the_script(target: str):
    runs = [rest for word, rest in stages()[f"build-{target}"] if word == "RUN"]
    assert runs == [f"/source/docker/install.sh {target} /source /opt/vila"]
    assert os.access(DOCKER / "install.sh", os.X_OK)


def test_what_is_copied_reaches_the_build():
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    sources = {
        part.removeprefix("./").rstrip("/")
        for lines in stages().values()
        for word, rest in lines
        if word == "COPY" and not rest.startswith("--from")
        for part in rest.split()[:-1]
    }
    assert sources == {"constraints-page.txt", "packages", "docker/install.sh", "docker/healthcheck.py"}
    assert {f"!{source}" for source in sources} <= set(ignored)
    assert ignored[0] == "*"
    assert all((REPOSITORY / source).exists() for source in sources)


def test_the_run_line_of_vilas_own_server_works():
    """`-v ./hub:/root/.cache/huggingface/hub -p 8000:8000 -e VILA_MODEL_PATH=…`, without being root."""
    from vila_serve.settings import ServeSettings

    lines = stages()["cuda"]
    environment = dict(re.findall(r"(\w+)=(\S+)", " ".join(rest for word, rest in lines if word == "ENV")))
    assert environment["HF_HOME"] == "/root/.cache/huggingface"
    setup = next(rest for word, rest in lines if word == "RUN" and "useradd" in rest)
    assert "mkdir -p /root/.cache/huggingface/hub" in setup
    assert "chmod 711 /root /root/.cache" in setup
    assert "chown -R vila:vila /root/.cache/huggingface" in setup
    names = {f"VILA_{name.upper()}" for name in ServeSettings.model_fields}
    assert {name for name in environment if name.startswith("VILA_")} <= names
    assert {"VILA_MODEL_PATH", "VILA_CONV_MODE", "VILA_WORKERS"} <= names
    assert (environment["VILA_HOST"], environment["VILA_PORT"]) == ("0.0.0.0", "8000")
    assert ("EXPOSE", "8000") in lines


def test_compose_needs_secrets_and_pins_its_images():
    from vila_serve.settings import ServeSettings

    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    services: dict[str, Any] = compose["services"]
    assert set(services) == {"server", "prometheus", "grafana"}
    server = services["server"]
    assert server["build"]["dockerfile"] == "docker/Dockerfile"
    assert server["environment"]["VILA_API_KEY"].startswith("${VILA_API_KEY:?")
    assert services["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_PASSWORD:?")
    names = {f"VILA_{name.upper()}" for name in ServeSettings.model_fields}
    assert set(server["environment"]) <= names
    for name in ("prometheus", "grafana"):
        assert re.fullmatch(r"\S+:v?\d+\.\d+\.\d+@sha256:[0-9a-f]{64}", services[name]["image"])
        for volume in services[name]["volumes"]:
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (DOCKER / source).exists(), volume
    for service in services.values():
        for port in service.get("ports", []):
            assert port in ("8000:8000", "127.0.0.1:3000:3000")
    scraped = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"][0]
    assert scraped["static_configs"][0]["targets"] == ["server:8000"]
    assert scraped["authorization"]["credentials_file"] == "/run/secrets/vila_api_key"


def test_grafana_finds_the_dashboard():
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    provider = yaml.safe_load((DOCKER / "grafana/provisioning/dashboards/vila.yaml").read_text())["providers"][0]
    mounted = compose["services"]["grafana"]["volumes"][1].split(":")[1]
    assert provider["options"]["path"] == mounted
    source = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"][0]
    dashboard = json.loads((DOCKER / "grafana/dashboards/vila-serve.json").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}


def test_the_pins_of_the_page_are_those_of_the_checks_but_for_what_gradio_forbids():
    def pins(name: str) -> dict[str, str]:
        lines = (REPOSITORY / name).read_text().splitlines()
        return dict(line.split("==") for line in lines if not line.startswith("#"))

    page, checks = pins("constraints-page.txt"), pins("constraints.txt")
    differing = {name for name in page.keys() & checks.keys() if page[name] != checks[name]}
    assert differing <= {"pillow", "tomlkit"}


@pytest.fixture(scope="module")
def installed() -> Iterator[Path]:
    """The environment that the script makes. PyTorch comes from the environment of the tests; the script finds it."""
    folder = Path(tempfile.mkdtemp(prefix="vila-image-"))
    environment = folder / "vila"
    run_program([sys.executable, "-m", "venv", environment], check=True)
    purelib = sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)})
    (Path(purelib) / "core.pth").write_text(_core_packages() + "\n")
    command = [DOCKER / "install.sh", "cpu", REPOSITORY, environment]
    done = run_program(command, seconds=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    yield environment
    shutil.rmtree(folder)


def _core_packages() -> str:
    """Return the folder that has torch."""
    import torch

    return str(Path(torch.__file__).parents[1])


def test_the_script_installs_a_server_that_works(installed: Path, tmp_path: Path):
    """In an environment like the container's: no home to write to, the port from the environment."""
    lines = stages()["cpu"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = dict(re.findall(r"(\w+)=(\S+)", " ".join(rest for word, rest in lines if word == "ENV")))
    environment |= {
        "PATH": f"{installed}/bin:{os.environ['PATH']}",
        "HF_HOME": str(tmp_path / "hf"),
        "HOME": str(tmp_path),
        "VILA_HOST": "127.0.0.1",
        "VILA_PORT": str(port),
        "VILA_CONV_MODE": "auto",
        "VILA_MODEL_PATH": "",
        "VILA_LOG_FORMAT": "json",
        "OMP_NUM_THREADS": "1",
    }
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(["vila-serve"], env=environment, stderr=log, cwd=tmp_path)
        try:
            check = [installed / "bin/python", DOCKER / "healthcheck.py"]
            deadline = time.monotonic() + 600
            while run_program(check, env=environment).returncode:
                assert server.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(1)
            import httpx2

            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
                question = {"model": "vila-tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
                assert http.post("/chat/completions", json=question).status_code == 200
                assert "VILA Kit" in http.get("/").text
        finally:
            server.terminate()
            assert server.wait(240) == 0
    logged = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    assert any(line.get("path") == "/chat/completions" and line["status"] == 200 for line in logged)


@pytest.mark.parametrize("arguments", [[], ["gpu", str(REPOSITORY), "x"], ["cpu"]], ids=str)
def test_the_script_explains_wrong_arguments(arguments: list[str], tmp_path: Path):
    done = run_program([DOCKER / "install.sh", *arguments], cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.strip()
    assert not (tmp_path / "x").exists()

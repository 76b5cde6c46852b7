"""The fetcher of media: TLS certificates and host names."""

import shutil
import ssl

import pytest
from tests.programs import run_program
from tests.raw_server import LOOPBACK, Server, refusal, resolve_to, whole

from vila_core.media.fetch import fetch


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for media.example."""
    openssl = shutil.which("openssl")
    if not openssl:
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    names = ["-subj", "/CN=media.example", "-addext", "subjectAltName=DNS:media.example"]
    command = [
        openssl,
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        *names,
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
    ]
    run_program(command, cwd=folder, check=True)
    return folder


@pytest.fixture
def secure_server(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    names = []
    context.sni_callback = lambda connection, name, _: names.append(name)
    server = Server(context)
    server.names = names
    server.answers["/"] = whole(b"secure")
    yield server
    server.close()


def test_tls_verifies_the_host_name_at_the_resolved_address(secure_server, certificate, monkeypatch):
    resolve_to(monkeypatch, "127.0.0.1")
    policy = LOOPBACK.model_copy(update={"ca_file": certificate / "cert.pem", "allow_http": False})
    assert fetch(f"https://media.example:{secure_server.port}/", policy).read() == b"secure"
    assert secure_server.names == ["media.example"]


def test_tls_refuses_wrong_names_and_unknown_issuers(secure_server, certificate, monkeypatch):
    resolve_to(monkeypatch, "127.0.0.1")
    policy = LOOPBACK.model_copy(update={"ca_file": certificate / "cert.pem"})
    assert "certificate" in refusal(f"https://other.example:{secure_server.port}/", policy)
    assert "certificate" in refusal(f"https://media.example:{secure_server.port}/", LOOPBACK)
    assert "certificate" in refusal(f"https://127.0.0.1:{secure_server.port}/", policy)
    assert not secure_server.asked


def test_tls_to_a_plain_server(server):
    assert "TLS" in refusal(f"https://127.0.0.1:{server.port}/", LOOPBACK.model_copy(update={"idle_timeout_s": 0.5}))


def test_invalid_certificate_file(tmp_path, server):
    for path in (tmp_path / "none.pem", tmp_path / "text.pem"):
        if path.name == "text.pem":
            path.write_text("hello")
        assert "ca_file" in refusal(f"https://127.0.0.1:{server.port}/", LOOPBACK.model_copy(update={"ca_file": path}))

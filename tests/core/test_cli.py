"""`vila`: help, info, convert, doctor and plugins' commands. `vila plugins` is tested in `test_plugins.py`."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tests.programs import run_program

import vila_core as vila
from vila_core.checkpoint import open_checkpoint
from vila_core.checkpoint.description import count_tokens, describe, name_family
from vila_core.cli import doctor, main, replaced
from vila_core.cli.chat import read_line
from vila_core.plugins import loader as plugin_loader
from vila_core.plugins.loader import load_plugin_file

DATA = Path(__file__).parents[1] / "parity" / "data"
TILES = DATA / "golden" / "nvila_lite_56" / "checkpoint"
S2 = DATA / "golden" / "nvila_56" / "checkpoint"
CLIP = DATA / "golden2" / "vila15_clip_336" / "checkpoint"
YI = DATA / "golden2" / "vila15_yi_intern_448" / "checkpoint"
INPUTS = DATA / "golden" / "inputs"
ALL = pytest.mark.parametrize("checkpoint", [TILES, S2, CLIP, YI], ids=["nvila_lite", "nvila", "clip", "yi"])

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `vila` in this process: (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main.main([str(argument) for argument in arguments])
        output = capfd.readouterr()
        return int(exit_.value.code or 0), output.out, output.err

    return run


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    script = """
import sys
from vila_core.cli.main import main
try:
    main(["--help"])
finally:
    heavy = ("torch", "transformers", "numpy", "pydantic", "vila_core.cli.doctor")
    print([name for name in heavy if name in sys.modules])
"""
    done = run_program([sys.executable, "-c", script], check=True)
    assert all(f" {command} " in done.stdout for command in ("plugins", "doctor", "info", "convert", "export"))
    assert done.stdout.splitlines()[-1] == "[]"


def test_no_arguments_shows_help(run: Run) -> None:
    _, out, err = run()
    assert "Usage" in out + err


def test_unknown_command(run: Run) -> None:
    code, _, err = run("covnert")
    assert code == 2
    assert "covnert" in err


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        ("run", "torchrun"),
        ("upload", "hf upload"),
        ("ask", "vila infer"),
        ("quantize", "vila quant"),
    ],
)
def test_commands_of_other_programs_get_a_hint(command: str, advice: str, run: Run) -> None:
    code, _, err = run(command, "--port", "8000")
    assert code == 2
    assert err.startswith(f"Error: There is no command 'vila {command}'. ")
    assert advice in err


def test_infer_is_a_subcommand(run: Run) -> None:
    picture = INPUTS / "wide_700x180.png"
    expected = vila.load(TILES).generate([vila.Image(picture), "what?"], max_new_tokens=4)
    assert run("infer", "-m", TILES, "--media", picture, "--text", "what?", "--max_new_tokens", 4)[1] == expected + "\n"


def test_module_is_the_program() -> None:
    done = run_program([sys.executable, "-m", "vila_core", "--version"], check=True)
    assert done.stdout.strip() == vila.__version__


def test_replaced_programs_name_the_new_ones(capsys: pytest.CaptureFixture[str]) -> None:
    for program, advice in ((replaced.run, "torchrun"), (replaced.upload, "hf upload")):
        with pytest.raises(SystemExit) as exit_:
            program()
        assert exit_.value.code == 2
        assert advice in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["", "infer", "chat", "info", "convert", "export", "tokenize-image", "doctor", "plugins"]
)
def test_help_pages_are_plain(command: str, run: Run) -> None:
    code, out, _ = run(*command.split(), "-h")
    assert code == 0
    assert "Show this message" in out
    assert not any(odd in out for odd in ("<bool>", "<str>", "<int>", "<float>", "list[", "<path>", "range>"))
    assert not any(len(line) > 80 for line in out.splitlines())


def test_shell_completion(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_VILA_COMPLETE", "complete_bash")
    for words, position, expected in (("vila con", 1, "convert"), ("vila convert --for", 2, "--format")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(position))
        with pytest.raises(SystemExit):
            main.main([])
        assert capfd.readouterr().out.strip() == expected


def talk(run: Run, monkeypatch: pytest.MonkeyPatch, *lines: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    return run("chat", "-m", TILES, "--max-new-tokens", 4)


def test_chat_keeps_its_history(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = INPUTS / "wide_700x180.png"
    model = vila.load(TILES)
    first = vila.Message("user", [vila.Image(picture), "what is it?"])
    answers = [model.chat([first], max_new_tokens=4)]
    history = [first, vila.Message("assistant", answers[0]), vila.Message("user", "sure?")]
    answers.append(model.chat(history, max_new_tokens=4))
    answers.append(model.chat([vila.Message("user", "sure?")], max_new_tokens=4))
    code, out, err = talk(run, monkeypatch, f"{picture} what is it?", "sure?", "/new", "sure?", "/exit", "never")
    assert (code, out.splitlines()) == (0, answers)
    assert "A new conversation" in err


def test_chat_goes_on_after_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = talk(run, monkeypatch, "missing.png what is it?", "hello")
    assert code == 0
    assert "Error: No file or folder 'missing.png'" in err
    assert out.splitlines() == [vila.load(TILES).generate("hello", max_new_tokens=4)]


@pytest.mark.parametrize(
    ("line", "media", "text"),
    [
        ("{picture} what?", 1, "what?"),
        ("compare '{picture}' and \"{picture}\"", 2, "compare and"),
        ("{spaced} what's this?", 1, "what's this?"),
        ("what's in node.js?", 0, "what's in node.js?"),
        ("https://example.org/a.png", 1, None),
    ],
)
def test_media_in_a_line(line: str, media: int, text: str | None, tmp_path: Path) -> None:
    spaced = tmp_path / "my picture.png"
    shutil.copy(INPUTS / "wide_700x180.png", spaced)
    parts = read_line(line.format(picture=INPUTS / "wide_700x180.png", spaced=str(spaced).replace(" ", "\\ ")))
    assert len([part for part in parts if isinstance(part, vila.Image)]) == media
    assert [part for part in parts if isinstance(part, str)] == ([] if text is None else [text])


def test_version(run: Run) -> None:
    assert run("--version")[1].strip() == vila.__version__


def test_plugins_command_is_imported_when_it_runs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_loader, "_plugin_files", {})
    (tmp_path / "hello.py").write_text("""
import typer
from vila_core import Command, VilaError, hookimpl

loaded = []

def load_function():
    loaded.append("function")
    def hello(name: str, loud: bool = False) -> None:
        typer.echo(name.upper() if loud else name)
    return hello

def load_app():
    loaded.append("app")
    app = typer.Typer()

    @app.command()
    def add(a: int, b: int) -> None:
        typer.echo(a + b)

    @app.command()
    def fail() -> None:
        raise VilaError("it went wrong")

    return app

@hookimpl
def vila_commands():
    return [Command("hello", "Say a name.", load_function), Command("sums", "Count.", load_app)]
""")
    load_plugin_file(tmp_path / "hello.py")
    loaded = next(module for name, module in sys.modules.items() if name.startswith("vila_plugin_file_hello")).loaded
    assert "Say a name." in run("--help")[1]
    assert loaded == []
    assert run("hello", "ada", "--loud")[:2] == (0, "ADA\n")
    assert run("sums", "add", "2", "3")[:2] == (0, "5\n")
    assert run("sums", "fail") == (2, "", "Error: it went wrong\n")
    assert "add" in run("sums", "--help")[1]
    assert loaded == ["function", "app", "app", "app"]


@ALL
def test_info_agrees_with_the_loaded_model(checkpoint: Path, run: Run) -> None:
    code, out, _ = run("info", checkpoint, "--json")
    info = json.loads(out)
    model = vila.load(checkpoint, dtype="float32", chat_template="vicuna_v1" if checkpoint == CLIP else None)
    stored = 0
    for file in checkpoint.glob("*/*.safetensors"):
        with safe_open(file, "pt") as tensors:
            stored += sum(tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118 - it is no mapping
    assert code == 0
    assert info["parameters"] == stored == sum(part["parameters"] for part in info["parts"])
    assert info["context"] == model.config.language_model.max_length
    largest = max(info["memory"], key=lambda memory: (memory["dtype"] == "float32", memory["context"]))
    cache = model.network.llm.new_cache(1, 64)
    kept = sum(tensor.nbytes for tensor in vars(cache).values() if isinstance(tensor, torch.Tensor))
    kept += sum(
        tensor.nbytes for tensors in vars(cache).values() if isinstance(tensors, (list, tuple)) for tensor in tensors
    )
    assert largest["context"] == info["context"]
    assert largest["kv_cache"] * 64 == kept * info["context"], (
        "key/value bytes grow with the context as the real cache does"
    )
    assert largest["total"] == largest["weights"] + largest["kv_cache"] == 4 * stored + largest["kv_cache"]


@ALL
def test_tokens_of_media_are_those_of_a_real_prompt(checkpoint: Path) -> None:
    model = vila.load(checkpoint, dtype="float32", chat_template="vicuna_v1" if checkpoint == CLIP else None)
    counts = count_tokens(model.config)
    ends = len(model.tokenizer.encode("\n"))
    seen = model.inspect([vila.Image(INPUTS / "pair_a_300x200.png"), vila.Image(INPUTS / "tall_150x410.png"), "?"])
    assert seen.token_counts["image 1"] == counts.per_tile + ends
    video = model.inspect([vila.Video(INPUTS / "video_12frames"), "?"])
    assert video.token_counts["video 1"] == counts.per_video + ends * model.config.preprocess.num_video_frames
    assert counts.per_image is not None
    fewest, most = counts.per_image
    alone = [model.inspect([vila.Image(INPUTS / name), "?"]) for name in ("square_200x200.png", "wide_700x180.png")]
    separate = model.config.preprocess.image_aspect_ratio == "dynamic"
    for inspection in alone:
        tokens = inspection.token_counts["image 1"] - ends * (len(inspection.media[0].tiles.pixels) if separate else 1)
        assert fewest <= tokens <= most


def test_family_is_recognized_by_the_parts() -> None:
    families = [name_family(open_checkpoint(path).config) for path in (TILES, S2, CLIP, YI)]
    assert families == ["NVILA-Lite (dynamic tiles)", "NVILA (dynamic S2)", "VILA-1.5", "VILA-1.5"]


def test_info_without_json(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    code, out, err = run("info", S2)
    assert (code, err) == (0, "")
    for expected in (
        "NVILA (dynamic S2)",
        "qwen2",
        "siglip",
        "mlp_downsample_2x2_fix",
        "241,472",
        "<vila/video>",
        "36 to 48 tokens",
        "8,192 tokens",
    ):
        assert expected in out


def test_info_reads_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "vila_core.checkpoint.tensors.reading.read_tensors", lambda *_: pytest.fail("weights were read")
    )
    assert describe(open_checkpoint(TILES)).parameters > 0


def test_info_of_an_empty_folder(run: Run, tmp_path: Path) -> None:
    code, out, err = run("info", tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert "is empty" in err


def test_convert_there_and_back(run: Run, tmp_path: Path) -> None:
    code, out, err = run("convert", TILES, tmp_path / "nvila", "--format", "nvila")
    assert (code, err) == (0, "")
    assert str(tmp_path / "nvila") in out
    assert run("convert", tmp_path / "nvila", tmp_path / "back", "-f", "vila", "--max-shard", "100KB")[0] == 0
    first, back = open_checkpoint(TILES), open_checkpoint(tmp_path / "back")
    assert back.config == first.config
    assert back.weights.entries.keys() == first.weights.entries.keys()
    prompt = [vila.Image(INPUTS / "wide_700x180.png"), "what?"]
    assert (
        vila.load(tmp_path / "back").complete(prompt, max_new_tokens=6).token_ids
        == vila.load(TILES).complete(prompt, max_new_tokens=6).token_ids
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "nvlia"], "Did you mean 'nvila'?"),
        (["--format", "vila", "--max-shard", "huge"], "not a size"),
        (["--format", "vila", "--lora-path", "missing"], "missing"),
    ],
)
def test_failed_convert_leaves_nothing_behind(flags: list[str], message: str, run: Run, tmp_path: Path) -> None:
    code, _, err = run("convert", TILES, tmp_path / "out", *flags)
    assert code == 2
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Fake installed packages, for a `vila-core` that requires torch, av and (in an extra) timm."""
    versions = {"vila-core": "0.1.0", "torch": "2.99.1", "av": "15.0"}
    requirements = ["torch>=2.11", "av<17,>=14", "timm>=1; extra == 'timm'", "winonly; sys_platform == 'win33'"]

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    class Metadata:
        def get_all(self, key: str) -> list[str]:
            return ["timm"] if key == "Provides-Extra" else []

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: requirements)
    monkeypatch.setattr(doctor.metadata, "metadata", lambda name: Metadata())
    monkeypatch.setattr(doctor, "_examine_model", lambda: iter(()))
    return versions


def report(run: Run) -> tuple[int, dict[str, dict[str, str]]]:
    code, out, _ = run("doctor", "--json")
    found = json.loads(out)
    assert found["healthy"] == (code == 0)
    return code, {finding["name"]: finding for finding in found["findings"]}


def test_doctor_of_a_complete_installation(installed: dict[str, str], run: Run) -> None:
    code, found = report(run)
    assert code == 0
    assert (found["torch"]["status"], found["torch"]["detail"]) == ("ok", "2.99.1")
    assert found["timm"]["status"] == "note"
    assert found["timm"]["fix"] == "pip install 'vila-core[timm]'"
    assert found["vila-serve"]["fix"].startswith("python -m pip install -e 'packages/vila-serve'")
    assert "winonly" not in found
    assert found["python"]["status"] == "ok"
    assert "Everything required is installed" in run("doctor")[1]


def test_doctor_reports_what_is_missing_and_the_fix(
    installed: dict[str, str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    del installed["av"]
    installed |= {"torch": "2.4.0", "vila-quant": "0.0.9"}
    code, found = report(run)
    assert code == 1
    assert (found["av"]["status"], found["av"]["fix"]) == ("missing", 'pip install "av<17,>=14"')
    assert (found["torch"]["status"], found["torch"]["fix"]) == ("missing", 'pip install "torch>=2.11"')
    assert found["vila-quant"]["fix"].startswith("python -m pip install -e packages/vila-quant")
    assert '→ pip install "av<17,>=14"' in run("doctor")[1]


def test_doctor_reports_a_gpu_that_torch_cannot_use(
    installed: dict[str, str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_nvidia_driver", lambda: "570.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    code, found = report(run)
    assert code == 0, "it runs on the CPU"
    assert (found["cuda"]["status"], found["cuda"]["fix"]) == ("warning", "pip install --force-reinstall torch")
    assert "570.1" in found["cuda"]["detail"]


def test_doctor_reports_plugins_that_fail_to_load(
    installed: dict[str, str], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bad-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: dist-bad\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[vila]\nbad = no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin_loader._load.cache_clear()
    try:
        _, found = report(run)
    finally:
        monkeypatch.undo()
        plugin_loader._load.cache_clear()
    finding = found["bad (dist-bad 1.0)"]
    assert finding["status"] == "warning"
    assert "no_such_module_anywhere" in finding["detail"]

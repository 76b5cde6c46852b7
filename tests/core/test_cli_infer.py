"""`vila-infer` on a tiny checkpoint."""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL.Image
import pytest
from tests.programs import run_program

import vila_core as vila
from vila_core.cli import infer
from vila_core.cli.arguments import join_values, open_medium, read_prompt
from vila_core.cli.terminal import echo_answer, visible
from vila_core.errors import MediaError, PromptError
from vila_core.plugins import loader as plugin_loader

DATA = Path(__file__).parents[1] / "parity" / "data" / "golden"
TILES = DATA / "nvila_lite_56" / "checkpoint"
S2 = DATA / "nvila_56" / "checkpoint"
WIDE, TALL = DATA / "inputs" / "wide_700x180.png", DATA / "inputs" / "tall_150x410.png"
VIDEO, FRAMES = DATA / "inputs" / "video_12frames.avi", DATA / "inputs" / "video_12frames"

Result = tuple[int, str, str]
Run = Callable[..., Result]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `vila-infer` in this process: (exit code, stdout, stderr). Without `stdin`, stdin is a terminal."""

    def run(*arguments: object, stdin: str | None = None) -> Result:
        monkeypatch.setattr("sys.stdin", Terminal() if stdin is None else io.StringIO(stdin))
        with pytest.raises(SystemExit) as exit_:
            infer.main([str(argument) for argument in arguments])
        output = capfd.readouterr()
        return int(exit_.value.code or 0), output.out, output.err

    return run


@pytest.fixture(scope="module")
def model() -> vila.Vila:
    return vila.load(TILES)


def test_answer_equals_the_librarys(run: Run, model: vila.Vila) -> None:
    expected = model.complete([vila.Image(WIDE), "what?"], max_new_tokens=6)
    code, out, err = run("-m", TILES, "--media", WIDE, "--text", "what?", "--max-new-tokens", 6)
    assert (code, out, err) == (0, expected.text + "\n", "")


def test_json_equals_the_completion(run: Run, model: vila.Vila) -> None:
    expected = model.complete([vila.Image(WIDE), "what?"], max_new_tokens=6)
    code, out, _ = run("--model-path", TILES, "--media", WIDE, "--text", "what?", "--max_new_tokens", 6, "--json")
    answer = json.loads(out)
    assert code == 0
    assert (answer["text"], answer["token_ids"], answer["finish_reason"]) == (
        expected.text,
        expected.token_ids,
        expected.finish_reason,
    )
    assert answer["usage"] == {
        "prompt_tokens": expected.usage.prompt_tokens,
        "media_tokens": expected.usage.media_tokens,
        "completion_tokens": expected.usage.completion_tokens,
        "cached_tokens": 0,
        "drafted_tokens": 0,
        "accepted_tokens": 0,
    }
    assert set(answer["timings"]) == {"preprocess", "encode", "prefill", "decode"}


def test_streamed_and_complete_answers_are_equal(run: Run) -> None:
    arguments = (
        "-m",
        TILES,
        "--media",
        TALL,
        "--text",
        "Describe it.",
        "--max-new-tokens",
        24,
        "--temperature",
        1.3,
        "--seed",
        5,
    )
    _, whole, _ = run(*arguments, "--no-stream")
    code, streamed, _ = run(*arguments, "--stream")
    assert code == 0
    assert streamed == whole
    assert whole != run(*arguments[:-1], 6)[1], "the seed matters"


@pytest.mark.parametrize("spelling", ["--num-video-frames", "--num_video_frames", "-nf"])
@pytest.mark.parametrize("source", [VIDEO, FRAMES], ids=["file", "folder"])
def test_number_of_video_frames(spelling: str, source: Path, run: Run) -> None:
    per_frame = 5  # 4 patches and the end token
    arguments = ("-m", TILES, "--media", source, "--text", "what happens?", "--max-new-tokens", 1, "--json")
    assert json.loads(run(*arguments, spelling, 3)[1])["usage"]["media_tokens"] == 3 * per_frame
    assert json.loads(run(*arguments, spelling, -1)[1])["usage"]["media_tokens"] == 8 * per_frame, (
        "-1 is the model's own"
    )


def test_set_changes_any_preprocessing_setting(run: Run, model: vila.Vila) -> None:
    few = json.loads(
        run("-m", TILES, "--media", WIDE, "--text", "?", "--max-new-tokens", 1, "--json", "--set", "max_tiles=2")[1]
    )
    limited = vila.load(TILES, max_tiles=2).complete([vila.Image(WIDE), "?"], max_new_tokens=1)
    assert (
        few["usage"]["media_tokens"]
        == limited.usage.media_tokens
        < model.complete([vila.Image(WIDE), "?"], max_new_tokens=1).usage.media_tokens
    )
    tiles = json.loads(
        run("-m", TILES, "--media", VIDEO, "--text", "?", "--max-new-tokens", 1, "--json", "--video_max_tiles", 2)[1]
    )
    assert (
        tiles["usage"]["media_tokens"]
        == vila.load(TILES, video_max_tiles=2).complete([vila.Video(VIDEO), "?"], max_new_tokens=1).usage.media_tokens
    )


def test_text_from_a_pipe(run: Run, model: vila.Vila) -> None:
    expected = model.generate("say something", max_new_tokens=5)
    assert run("-m", TILES, "--max-new-tokens", 5, stdin="say something\n") == (0, expected + "\n", "")
    assert run("-m", TILES, "--max-new-tokens", 5, "--text", "-", stdin="say something\n")[1] == expected + "\n"
    assert run("-m", TILES, "--max-new-tokens", 5, "--text", "say something", stdin="unused")[1] == expected + "\n"


def test_media_keep_their_order_and_come_before_the_text() -> None:
    parts = read_prompt(
        "Compare.",
        [
            str(TALL),
            str(VIDEO),
            str(FRAMES),
            f"video:{WIDE}",
            "https://example.org/a.png?size=2",
            "https://example.org/b.MP4",
        ],
    )
    kinds = [type(part).__name__ for part in parts]
    assert kinds == ["Image", "Video", "Video", "Video", "Image", "Video", "str"]


def test_stop_strings_and_json_schema(run: Run, tmp_path: Path) -> None:
    schema = tmp_path / "answer.json"
    schema.write_text(
        json.dumps(
            {
                "type": "object",
                "properties": {"ok": {"type": "boolean"}},
                "required": ["ok"],
                "additionalProperties": False,
            }
        )
    )
    code, out, _ = run("-m", TILES, "--text", "ok?", "--json-schema", schema, "--max-new-tokens", 40)
    assert code == 0
    assert set(json.loads(out)) == {"ok"}
    _, whole, _ = run("-m", TILES, "--text", "ok?", "--max-new-tokens", 20)
    first, second = whole[3], whole[6]
    _, stopped, _ = run("-m", TILES, "--stop", first, second, "--text", "ok?", "--max-new-tokens", 20)
    assert stopped.strip() == whole[: min(whole.index(first), whole.index(second))].strip()


def test_plugin_file_is_loaded(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_loader, "_plugin_files", {})
    file = tmp_path / "dialog.py"
    file.write_text(
        "from vila_core import hookimpl\nfrom vila_core.chat import SeparatorTemplate\n"
        "@hookimpl\ndef vila_chat_templates():\n"
        "    return [SeparatorTemplate('from_a_file', '', '', 'MARK ', '<|im_end|>', 'ANSWER ', '<|im_end|>')]\n"
    )
    without_template = tmp_path / "model"
    shutil.copytree(TILES, without_template)
    (without_template / "llm" / "chat_template.jinja").unlink(missing_ok=True)
    for name, keys in (("llm/tokenizer_config.json", ["chat_template"]), ("config.json", ["chat_template", "version"])):
        content = json.loads((without_template / name).read_text())
        kept = {key: value for key, value in content.items() if key not in keys}
        (without_template / name).write_text(json.dumps(kept))
    assert "does not say which chat template" in run("-m", without_template, "--text", "hi")[2]
    code, _, err = run(
        "-m",
        without_template,
        "--text",
        "hi",
        "--plugin",
        file,
        "-c",
        "from_a_file",
        "--explain",
        "--max-new-tokens",
        1,
    )
    assert code == 0, err
    assert "MARK hi" in err


@pytest.mark.parametrize(
    "arguments",
    [
        [WIDE, "what?"],
        ["what?", WIDE],
        ["--media", WIDE, "what is it?"],
        ["--image", WIDE, "--prompt", "what?"],
        [f"--image_file={WIDE}", "--query", "what?"],
        ["--images", WIDE, "--question", "what?"],
        ["--text", "what?", WIDE],
        [f"image:{WIDE}", "what?"],
    ],
    ids=lambda value: " ".join(Path(str(word)).name for word in value),
)
def test_media_and_questions_in_any_spelling(arguments: list[object], run: Run, model: vila.Vila) -> None:
    question = "what is it?" if "what is it?" in arguments else "what?"
    expected = model.generate([vila.Image(WIDE), question], max_new_tokens=4)
    assert run("--model", TILES, *arguments, "--max-tokens", 4) == (0, expected + "\n", "")


def test_unquoted_question_and_video_option(run: Run) -> None:
    arguments = ("-m", TILES, "--video", VIDEO, "--num-frames", 2, "--max_tokens", 1, "--json", "--dtype", "fp32")
    code, out, _ = run(*arguments, "--", "what", "happens", "here?")
    assert code == 0
    assert json.loads(out)["usage"]["media_tokens"] == 2 * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scene.pgn", "what?"], "No file or folder 'scene.pgn'"),
        (["--image", "nothing.png", "what?"], "No file or folder 'nothing.png'"),
        (["--text", "a", "b c"], "Got two texts"),
        (["--do-sample", "hi"], "--temperature is above 0"),
        (["--load-4bit", "hi"], "vila-quant awq"),
        (["--cache-dir=/x", "hi"], "HF_HOME"),
        (["--max-tiles", "3", "hi"], "--set max_tiles=6"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_names_of_other_programs_get_a_hint(arguments: list[str], message: str, run: Run) -> None:
    code, _, err = run(*arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def test_the_demo_model_says_so(run: Run) -> None:
    scene = Path(__file__).parents[2] / "examples" / "media" / "scene.png"
    code, out, err = run(scene, "What is in the picture?", "--max-new-tokens", 4)
    assert code == 0
    assert err == "Using the embedded demo model, which only knows drawn shapes. Name a model with -m.\n"
    assert run("-m", "vila-tiny", scene, "What is in the picture?", "--max-new-tokens", 4) == (0, out, "")


def test_text_that_names_a_file_is_one_line_of_warning(run: Run) -> None:
    code, _, err = run("-m", TILES, "--text", WIDE, "--max-new-tokens", 1)
    assert code == 0
    assert err.startswith("Warning: The text ")
    assert err.count("\n") == 1


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"{vila.__version__}\n", "")


@pytest.mark.parametrize("text", ["a\x1b[31mred", "title\x1b]0;x\x07", "c1\x9b31m", "over\rwritten", "\u202ereversed"])
def test_control_characters_are_visible_on_a_terminal(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert visible("kept:\tone\ntwo ü 你好") == "kept:\tone\ntwo ü 你好"
    assert not set("\x1b\x07\x9b\r\u202e") & set(visible(text))
    echo_answer(text)
    assert capsys.readouterr().out == text + "\n", "a pipe gets the answer unchanged"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    echo_answer(text)
    assert capsys.readouterr().out == visible(text) + "\n"


def test_explain_shows_prompt_budget_and_tiles(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    code, out, err = run("-m", TILES, "--media", WIDE, "--text", "what?", "--max-new-tokens", 2, "--json", "--explain")
    usage = json.loads(out)["usage"]
    assert code == 0
    assert "<|im_start|>user" in err
    assert "5 tiles of 56×56 px (1×4 + thumbnail)" in err
    assert f"{usage['media_tokens']}" in err.split("image 1")[1].splitlines()[0]
    assert f"{usage['prompt_tokens']}" in next(line for line in err.splitlines() if line.startswith("prompt "))
    picture = PIL.Image.open(tmp_path / "vila-explain.png").convert("RGB")
    colours = {colour: count for count, colour in picture.getcolors(picture.width * picture.height) or []}
    ellipse = PIL.Image.open(WIDE).convert("RGB").getpixel((470, 90))
    assert colours.get(ellipse, 0) > 1000, "the picture's ellipse is among the tiles, in its colour"


@pytest.mark.parametrize(
    ("checkpoint", "media", "expected"),
    [
        (S2, [WIDE], ["17 tiles of 56×56 px (1×1 + 2×2 + 2×6)"]),
        (S2, [WIDE, TALL, VIDEO], ["image 1", "image 2", "1 tile of 56×56 px", "8 frames of 56×56 px"]),
        (TILES, [], ["text"]),
    ],
    ids=["dynamic_s2", "several", "text"],
)
def test_explain_other_media(
    checkpoint: Path, media: list[Path], expected: list[str], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    flags = ["--media", *media] if media else []
    code, _, err = run(
        "-m", checkpoint, *flags, "--text", "what?", "--max-new-tokens", 1, "--explain", tmp_path / "seen.png"
    )
    assert code == 0, err
    assert all(text in err for text in expected), err
    assert (tmp_path / "seen.png").exists() == bool(media)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", ""], "The prompt is empty"),
        (["--media", "nothing.png", "--text", "?"], "No file or folder 'nothing.png'"),
        (["-m", "no-folder", "--text", "?"], "No folder 'no-folder'"),
        (["-m", "no-folder" * 100, "--text", "?"], "No folder 'no-folder"),
        (["-m", TILES, "--text", "\udcff"], "not valid Unicode: '\\udcff' in '"),
        (["--text", "?", "--set", "max_tiles"], "--set takes NAME=VALUE"),
        (["-m", TILES, "--text", "?", "--set", "max_tile=3"], "Did you mean 'max_tiles'?"),
        (["-m", TILES, "--text", "?", "-nf", "0"], "num_video_frames"),
        (["--text", "?", "--temperature", "-1"], "temperature"),
        (["--text", "?", "--json-schema", "answer.py"], "Python files are not executed"),
        (["--text", "?", "--json-schema", "missing.json"], "is missing"),
        (["--text", "?", "--json", "--stream"], "Got both --json and --stream"),
        (["-m", TILES, "--text", "?", "--conv-mode", "lama_3"], "Did you mean 'llama_3'?"),
        (["-m", TILES, "--text", "?", "--conv-mode", "llama_3"], "contradicts this checkpoint"),
        (["-m", TILES, "--text", "?", "--dtype", "float23"], "Did you mean 'float32'?"),
        (["-m", TILES, "--text", "?", "--device", "tpu9"], "device 'tpu9'"),
        (["--text", "?", "--plugin", "missing.py"], "Plugin file 'missing.py'"),
        (["-m", TILES, "--text", "?", "--lora-path", "missing"], "missing"),
    ],
    ids=lambda value: "-".join(str(word).strip("-") for word in value[-2:]) if isinstance(value, list) else "",
)
def test_user_errors_print_one_message(
    arguments: list[object], message: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("Error: ")
    assert message in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(PromptError):
        infer.main(["--debug"])


def test_unknown_flag(run: Run) -> None:
    code, _, err = run("--medai", WIDE)
    assert code == 2
    assert "--medai" in err


def test_missing_value(run: Run) -> None:
    code, _, err = run("--text", "?", "--media")
    assert code == 2
    assert "--media" in err


def test_ctrl_c_is_left_to_the_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vila, "load", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):  # not typer's exit
        infer.main(["-m", str(TILES), "--text", "?"])


def test_files_are_checked_before_the_model_is_loaded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vila, "load", lambda *_, **__: pytest.fail("loaded"), raising=False)
    assert run("--text", "?", "--media", WIDE, "nothing.png")[0] == 2
    assert run("--text", "?", "--top-p", "1.5")[0] == 2


def test_missing_media_file() -> None:
    for source in ("nothing.png", "video:nothing.mp4", "nothing" * 100):
        with pytest.raises(MediaError, match="nothing"):
            open_medium(source)


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from vila_core.cli.infer import main
try:
    main(["--help"])
finally:
    print([name for name in ("torch", "transformers", "numpy", "PIL", "pydantic") if name in sys.modules])
"""
    done = run_program([sys.executable, "-c", code], check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_shows_examples(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "vila-infer examples/media/scene.png" in out


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--media", "a", "b", "--text", "x y"], ["--media=a", "--media=b", "--text", "x y"]),
        (["--text", "x", "--media", "a", "--media", "b c"], ["--text", "x", "--media=a", "--media=b c"]),
        (["--media=-odd.png"], ["--media=-odd.png"]),
        (["--explain", "--json"], ["--explain=default", "--json"]),
        (["--explain", "mine.png"], ["--explain=mine.png"]),
        (["--num_video_frames=4", "--max_new_tokens", "8"], ["--num-video-frames=4", "--max-new-tokens", "8"]),
        (["--media"], ["--media"]),
    ],
)
def test_join_values(given: list[str], expected: list[str]) -> None:
    assert join_values(given, several=("--media",), optional={"--explain": "default"}) == expected


@pytest.mark.parametrize("pieces", [["  a", " ", "b ", " "], [" ", "\n", "a b"], ["", "ab"], [" ", " "], []])
def test_strip_pieces(pieces: list[str]) -> None:
    def given() -> Iterator[str]:
        yield from pieces

    assert "".join(infer.strip_pieces(given())) == "".join(pieces).strip()


def test_paths_that_the_system_refuses(run: Run, tmp_path: Path) -> None:
    loop = tmp_path / "loop.py"
    loop.symlink_to("loop.py")
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for arguments, reason in (
        (["--plugin", loop], "loop"),
        (["--explain=" + "x" * 5000 + ".png", "--text", "Hi", "--media", WIDE], "File name too long"),
        (["--text", "Hi", "--json-schema", pipe], "is a named pipe"),
        (["--text", "Hi", "--json-schema", tmp_path], "is a folder"),
    ):
        code, _, errors = run("-m", TILES, *arguments)
        assert code == 2, errors
        assert reason in errors
        assert "Traceback" not in errors


def test_text_that_the_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    arguments = ["convert", str(TILES), str(folder / "out"), "--format", "nvila"]
    done = run_program([sys.executable, "-m", "vila_core", *arguments], env=environment)
    assert (done.returncode, done.stdout) == (0, f"Wrote {tmp_path}/caf\\udce9/out (nvila).\n"), done.stderr

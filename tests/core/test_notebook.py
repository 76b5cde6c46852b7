"""What a notebook shows: representations, pictures, signatures, hints for names of other libraries."""

import base64
import inspect
import io
import re
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from tests.programs import run_program

import vila_core as vila
from vila_core.checkpoint.description import name_checkpoint
from vila_core.checkpoint.embedded import EMBEDDED_MODELS
from vila_core.config import PreprocessConfig
from vila_core.engine.completion import Completion, Timings, Usage
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import CheckpointError, ConfigError, GenerationError, MediaError, PromptError, VilaWarning

MEDIA = Path(__file__).parents[2] / "examples" / "media"
SCENE, VIDEO = MEDIA / "scene.png", MEDIA / "motion.mp4"
HOSTILE = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def model() -> vila.Vila:
    return vila.load("vila-tiny", device="cpu")


def pictures(html: str) -> list[PIL.Image.Image]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [PIL.Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_model_shows_what_it_is(model: vila.Vila) -> None:
    assert repr(model) == (
        "Vila('vila-tiny', NVILA (one tile per image), 7.84 M parameters, float32 on cpu, chat template 'auto', "
        "context 2,048 tokens)"
    )
    html = model._repr_html_()
    for fact in ("vila-tiny", "NVILA (one tile per image)", "7.84 M", "float32", "cpu", "auto", "2,048 tokens"):
        assert fact in html


def test_name_of_a_checkpoint(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--Efficient-Large-Model--NVILA-8B" / "snapshots" / "0123abcd"
    assert name_checkpoint(snapshot) == "Efficient-Large-Model/NVILA-8B"
    assert name_checkpoint(tmp_path / "my-run") == "my-run"


def test_image_is_a_picture() -> None:
    image = vila.Image(SCENE)
    (shown,) = pictures(image._repr_html_())
    assert image.size == PIL.Image.open(SCENE).size
    assert shown.size == image.size
    large = vila.Image(PIL.Image.new("RGB", (2000, 500)))
    assert pictures(large._repr_html_())[0].size == (480, 120)
    assert "2000 × 500 pixels" in large._repr_html_()


@pytest.mark.parametrize(
    "source", [VIDEO, np.zeros((5, 40, 60, 3), np.uint8), [SCENE, SCENE]], ids=["file", "array", "list"]
)
def test_video_is_a_strip_of_frames(source: object) -> None:
    video = vila.Video(source)  # pyright: ignore
    (strip,) = pictures(video._repr_html_())
    width, height = video.size
    assert strip.width > 96 * width // height, "several frames"
    assert f"{width} × {height} pixels" in video._repr_html_()


def test_show_opens_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[int, int]] = []
    monkeypatch.setattr(PIL.Image.Image, "show", lambda self: opened.append(self.size))
    vila.Image(SCENE).show()
    vila.Video(VIDEO).show()
    assert opened[0] == vila.Image(SCENE).size
    assert len(opened) == 2


@pytest.mark.parametrize("source", ["missing.png", b"no picture", f"{HOSTILE}.png"])
def test_a_medium_that_cannot_be_read_says_so(source: str | bytes) -> None:
    for medium in (vila.Image(source), vila.Video(source)):
        html = medium._repr_html_()
        assert not pictures(html)
        assert "<script" not in html
        assert len(html) > 100
        with pytest.raises(MediaError):
            _ = medium.size


def test_displaying_a_url_downloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("looked up"))
    for medium in (vila.Image("https://example.org/a.png"), vila.Video(["https://example.org/a.png"])):
        assert "Not downloaded yet" in medium._repr_html_()


def test_completion_shows_its_text_and_counts() -> None:
    completion = Completion((HOSTILE,), [1, 2], "length", Usage(40, 30, 2), Timings(0.1, 0.2, 0.3, 0.4))
    assert repr(completion) == (
        f"Completion({HOSTILE!r}, finish_reason='length', 40 prompt tokens (30 of media), 2 answer tokens, 1.00 s)"
    )
    assert str(completion) == HOSTILE
    html = completion._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "The answer was cut" in html
    assert len(repr(Completion(("x" * 10_000,), [], "stop", Usage(1, 0, 1), Timings(0, 0, 0, 0)))) < 400


def test_inspection_is_the_picture_of_explain(model: vila.Vila) -> None:
    seen = model.inspect([vila.Video(VIDEO), vila.Image(SCENE), HOSTILE])
    assert repr(seen) == "Inspection(378 of 2,048 tokens: text 45, video 1 296, image 1 37)"
    html = seen._repr_html_()
    assert "<script" not in html
    (drawn,) = pictures(html)
    assert drawn.size == seen.draw().size
    assert drawn.height > 300, "the tiles are drawn"


METHODS = ("generate", "chat", "complete", "stream", "generate_batch", "complete_batch")


@pytest.mark.parametrize("method", METHODS)
def test_settings_are_named_arguments(method: str) -> None:
    parameters = inspect.signature(getattr(vila.Vila, method)).parameters
    named = {name: one.default for name, one in parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY}
    assert named == {name: field.default for name, field in GenerationConfig.model_fields.items()}
    assert all(f"{name}: " in (getattr(vila.Vila, method).__doc__ or "") for name in named)


def test_arguments_of_load_are_named() -> None:
    parameters = inspect.signature(vila.load).parameters
    assert {"path", "device", "dtype", "lora", *PreprocessConfig.model_fields} <= set(parameters)
    assert all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    assert all(f"{name}: " in (vila.load.__doc__ or "") for name in parameters)


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("do_sample", True, "temperature"),
        ("max_length", 10, "max_new_tokens"),
        ("max_tokens", 10, "max_new_tokens"),
        ("num_beams", 4, "Beam search is not available"),
        ("images", [], r"vila_core\.Image"),
        ("eos_token_id", 3, "stop_token_ids"),
        ("temprature", 1, "Did you mean 'temperature'"),
    ],
)
def test_settings_of_other_libraries_get_a_hint(model: vila.Vila, name: str, value: object, instead: str) -> None:
    with pytest.raises(GenerationError, match=instead):
        model.generate("hi", **{name: value})  # pyright: ignore


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("torch_dtype", "auto", r"dtype="),
        ("max_memory", {0: "10GB"}, r"device="),
        ("device_map", "balanced", r"expected 'auto' or a list of devices"),
        ("conv_mode", "vicuna_v1", r"chat_template="),
        ("cache_dir", "/data", "HF_HOME"),
        ("trust_remote_code", True, "never run"),
        ("load_in_4bit", True, "vila-quant"),
        ("max_tile", 3, "Did you mean 'max_tiles'"),
        ("device_", "cpu", "Did you mean 'device'"),
    ],
)
def test_arguments_of_other_loaders_get_a_hint(name: str, value: object, instead: str) -> None:
    with pytest.raises(ConfigError, match=instead):
        vila.load("vila-tiny", **{name: value})  # pyright: ignore


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("generate_content", r"model\.generate"),
        ("to", r"load\(…, device"),
        ("cuda", r"load\(…, device"),
        ("eval", "ready for inference"),
        ("parameters", r"model\.network"),
        ("batch_generate", "generate_batch"),
    ],
)
def test_methods_of_other_libraries_get_a_hint(model: vila.Vila, name: str, instead: str) -> None:
    with pytest.raises(AttributeError, match=instead):
        getattr(model, name)
    assert not hasattr(model, name)


@pytest.mark.parametrize("name", ["from_pretrained", "AutoModel", "load_pretrained_model", "generate"])
def test_functions_of_other_libraries_get_a_hint(name: str) -> None:
    with pytest.raises(AttributeError, match=r"vila_core\.load|model\.generate"):
        getattr(vila, name)


def test_a_batch_is_not_one_text(model: vila.Vila) -> None:
    with pytest.raises(PromptError, match="list of prompts"):
        model.generate_batch("hello")  # pyright: ignore


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"max_tiles": "abc"}, "^max_tiles must be a whole number, got 'abc'.$"),
        ({"max_tiles": 1.5}, "^max_tiles must be a whole number, got 1.5.$"),
        ({"max_tiles": -3}, "^max_tiles must be more than 0, got -3.$"),
        ({"fps": -1}, "^fps must be 0 or more, got -1.$"),
        ({"fps": "fast"}, "^fps must be a number, got 'fast'.$"),
        ({"tile_all": "perhaps"}, "^tile_all must be true or false, got 'perhaps'.$"),
        (
            {"image_aspect_ratio": "square"},
            "must be 'resize', 'dynamic', 'dynamic_s2', 'pad' or 'other', got 'square'.$",
        ),
        ({"min_tiles": 9, "max_tiles": 3}, "^min_tiles 9 is greater than max_tiles 3.$"),
    ],
    ids=str,
)
def test_invalid_overrides_are_explained_in_plain_words(value: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        vila.load("vila-tiny", **value)  # pyright: ignore


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp16", "float16"), ("half", "float16"), ("bf16", "bfloat16"), ("FP32", "float32"), (None, "float32")],
)
def test_dtypes_have_short_names(name: str | None, dtype: str) -> None:
    assert str(vila.load("vila-tiny", dtype=name, device=None).dtype) == f"torch.{dtype}"


def test_progress_of_loading(capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int]] = []
    vila.load("vila-tiny", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 10_000_000
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    vila.load("vila-tiny")
    assert capfd.readouterr() == ("", ""), "no bar where nobody looks"


def test_unnamed_model_says_that_it_is_the_demo() -> None:
    with pytest.warns(VilaWarning, match="only knows drawn shapes") as caught:
        vila.load()
    assert caught[0].filename == __file__


@pytest.mark.parametrize("name", EMBEDDED_MODELS)
def test_a_folder_named_like_an_embedded_model_comes_first(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="is empty"):
        vila.load(name)


@pytest.mark.parametrize("name", ["vila-tiny-v", "vila-tiny-u ", "VILA-tiny"])
def test_names_like_those_of_embedded_models(name: str) -> None:
    with pytest.raises(CheckpointError, match="Embedded models: vila-tiny, vila-tiny-u"):
        vila.load(name)


def test_namespace_has_only_public_names() -> None:
    code = """
import vila_core
vila_core.load, vila_core.Image, vila_core.errors
print([name for name in dir(vila_core) if not name.startswith("_")] == sorted(vila_core.__all__))
names = {}
exec("from vila_core import *", names)
print(sorted(set(names) - {"__builtins__"}) == sorted(vila_core.__all__))
"""
    done = run_program([sys.executable, "-c", code], check=True)
    assert done.stdout.split() == ["True", "True"]


def test_notebook_shows_an_error_in_five_lines(model: vila.Vila) -> None:
    with pytest.raises(MediaError) as caught:
        model.generate([vila.Image("missing.png"), "what?"])
    lines = "\n".join(caught.value._render_traceback_()).splitlines()
    assert len(lines) <= 5
    assert lines[-1].startswith("MediaError: ")
    assert any("model.generate([vila.Image" in line for line in lines), "the user's own line"


@pytest.mark.parametrize(
    "fail",
    [
        lambda model: model.generate([vila.Image("missing.png"), "?"]),
        lambda model: model.generate([vila.Video("missing.mp4"), "?"]),
        lambda model: model.generate([vila.Image(b"damaged"), "?"]),
        lambda model: model.generate("hi", temperature=-1),
        lambda model: model.generate("hi", json_schema="{"),
        lambda model: vila.load("no/such-model", offline=True),
        lambda model: vila.load("nowhere"),
        lambda model: vila.load("vila-tiny", max_tiles="abc"),
        lambda model: vila.load("vila-tiny", device="tpu"),
        lambda model: vila.load("vila-tiny", lora="nowhere"),
    ],
    ids=["image", "video", "bytes", "setting", "schema", "hub", "folder", "override", "device", "lora"],
)
def test_errors_have_no_chain(model: vila.Vila, fail: "object") -> None:
    with pytest.raises(vila.VilaError) as caught:
        fail(model)  # pyright: ignore
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None

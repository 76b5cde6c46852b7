"""`generate_image` and `generate_video`: pictures of a prompt, progress, and what cannot be drawn."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from tests.core.drawing_heads import TINY_KINDS, HeadModule, SmallHead

import vila_core
from vila_core.chat import SENTINEL_TOKEN
from vila_core.engine.image_generation import MAX_PICTURES
from vila_core.errors import CheckpointError, ConfigError, GenerationError, PromptError, PromptTooLongError
from vila_core.generation.heads import OutputKind
from vila_core.generation.pictures import DrawingProgress
from vila_core.media import Video
from vila_core.runtime import Vila


def with_head(kinds: dict[str, OutputKind] = TINY_KINDS) -> Vila:
    """Return vila-tiny with a head that draws stripes: a row of pixels for each position."""
    model = vila_core.load("vila-tiny", device="cpu", dtype="float32")
    head = SmallHead(model.config.language_model.hidden_size, depth=2, codes=50, kinds=kinds)
    model.network.generation = HeadModule(head)
    return model


@pytest.fixture(scope="module")
def model() -> Vila:
    return with_head()


@pytest.fixture(scope="module")
def writer() -> Vila:
    return vila_core.load("vila-tiny", device="cpu", dtype="float32")


def pixels(pictures: Sequence[PIL.Image.Image]) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


def test_a_batch_has_the_pictures_that_its_prompts_have_alone(model: Vila) -> None:
    prompts = ["a snowy mountain", "a cat", "a snowy mountain"]
    together = pixels(model.generate_image_batch(prompts, seed=3))
    alone = [pixels(model.generate_image(prompt, seed=3))[0] for prompt in prompts]
    assert together == alone
    assert together[0] != together[1]


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ([], GenerationError, "1 to 256, got 0"),
        (["a"] * (MAX_PICTURES + 1), GenerationError, "got 257"),
        (["a", ""], PromptError, "is empty"),
        (["a", 3], PromptError, "is a text, got 3"),
        (["a", ["b"]], PromptError, "is a text"),
        ((one for one in "ab"), PromptError, "A batch is a list of prompts, got <generator"),
        (None, PromptError, "A batch is a list of prompts, got None"),
        ({"a": 1}, PromptError, "For one prompt use generate_image"),
        ("a cat", PromptError, "A batch is a list of prompts, got 'a cat'"),
    ],
)
def test_bad_batches(model: Vila, prompts: list[Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model.generate_image_batch(prompts)


@pytest.mark.parametrize(
    "prompts", ["a", b"a", {"role": "user"}, {"a", "b"}, None, iter(["a"])], ids=lambda prompts: type(prompts).__name__
)
def test_what_is_no_batch_of_questions(model: Vila, prompts: Any) -> None:
    for method in (model.complete_batch, model.generate_batch):
        with pytest.raises(PromptError, match=r"A batch is a list of prompts.*for an iterator, complete_each"):
            method(prompts)


def test_images(model: Vila) -> None:
    images = model.generate_image("a snowy mountain", n=4, guidance=3.0, seed=0)
    assert [(image.mode, image.size) for image in images] == [("RGB", (36, 36))] * 4
    assert len(set(pixels(images))) == 4


def test_an_image_does_not_depend_on_how_many_are_drawn(model: Vila) -> None:
    eight = pixels(model.generate_image("a red circle", n=8, seed=3))
    assert pixels(model.generate_image("a red circle", n=1, seed=3)) == eight[:1]
    assert pixels(model.generate_image("a red circle", n=3, seed=3)) == eight[:3]


def test_without_a_seed_every_call_draws_something_else(model: Vila) -> None:
    assert pixels(model.generate_image("a red circle")) != pixels(model.generate_image("a red circle"))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1}, {"guidance": 1.0}, {"guidance": 0.0}, {"temperature": 0.0}, {"temperature": 3.0}, {"top_k": 1},
        {"top_p": 0.01}, {"negative_prompt": "blurred"},
    ],
    ids=str,
)  # fmt: skip
def test_every_setting_has_an_effect(model: Vila, changes: Any) -> None:
    plain = pixels(model.generate_image("a red circle", n=2, seed=0))
    assert pixels(model.generate_image("a red circle", n=2, **{"seed": 0} | changes)) != plain


def test_temperature_0_draws_the_same_whatever_the_seed(model: Vila) -> None:
    first = model.generate_image("a red circle", temperature=0, seed=1)
    assert pixels(first) == pixels(model.generate_image("a red circle", temperature=0, seed=2))


def test_the_prompt_matters_but_not_the_space_around_it(model: Vila) -> None:
    plain = pixels(model.generate_image("a red circle", seed=0))
    assert pixels(model.generate_image("  a red circle\n", seed=0)) == plain
    assert pixels(model.generate_image("<image>a red circle", seed=0)) == plain
    assert pixels(model.generate_image("a blue circle", seed=0)) != plain


def test_a_video(model: Vila) -> None:
    (video,) = model.generate_video("Fireworks in the air.", seed=0)
    assert isinstance(video, Video)
    frames = video.load(8, 0).frames
    assert [frame.size for frame in frames] == [(4, 4)] * 6
    assert pixels(model.generate_video("Fireworks in the air.", n=2, seed=0)[0].load(8, 0).frames) == pixels(frames)


def test_progress_and_previews(model: Vila) -> None:
    seen: list[tuple[int, int]] = []
    previews: list[list[PIL.Image.Image]] = []

    def show(progress: DrawingProgress) -> None:
        seen.append((progress.done, progress.total))
        previews.append(progress.preview())

    images = model.generate_image("a red circle", n=2, seed=0, progress=show)
    assert seen[-1] == (72, 72)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len(seen) == 2
    assert pixels(previews[-1]) == pixels(images)
    half, whole = (np.asarray(one[0]) for one in (previews[0], images))
    done = seen[0][0] // 2
    assert (half[:done] == whole[:done]).all()
    assert (half[done:] == half[done - 6 : done][np.arange(36 - done) % 6]).all()


def test_a_preview_of_nothing(model: Vila) -> None:
    head = model.network.generation_head
    assert head is not None
    (preview,) = DrawingProgress(0, 24, head, "video", [[]], model.device).preview()
    assert preview.size == (4, 4)


def test_a_callback_that_raises_stops_the_drawing(model: Vila) -> None:
    def stop(progress: DrawingProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate_image("a red circle", n=3, progress=stop)
    stats = model.engine.stats()
    assert (stats.queued, stats.reading, stats.answering, stats.pages_used) == (0, 0, 0, 0)


@pytest.mark.parametrize("n", [0, -1, MAX_PICTURES + 1, 1.5, "4", None, True])
def test_n_out_of_range(model: Vila, n: Any) -> None:
    with pytest.raises(GenerationError, match=f"1 to {MAX_PICTURES}, got"):
        model.generate_image("a red circle", n=n)


@pytest.mark.parametrize("prompt", ["", "   ", "\n", "<image>", "<image> <vila/video>"])
def test_prompts_that_say_nothing(model: Vila, prompt: str) -> None:
    with pytest.raises(PromptError, match="Say what to draw"):
        model.generate_image(prompt)


@pytest.mark.parametrize("prompt", [None, 3, b"circle", ["a circle"], {"role": "user", "content": "a circle"}])
def test_prompts_that_are_no_text(model: Vila, prompt: Any) -> None:
    with pytest.raises(PromptError, match="is a text, got"):
        model.generate_image(prompt)


@pytest.mark.parametrize("length", [90_000, 3_000_000])
@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_prompts_that_are_too_long(model: Vila, name: str, length: int) -> None:
    texts = {"prompt": "a red circle"} | {name: "circle " * (length // 7)}
    with pytest.raises((PromptTooLongError, GenerationError), match=r"context|characters"):
        model.generate_image(**texts)  # pyright: ignore[reportArgumentType]


def test_unknown_and_wrong_settings(model: Vila) -> None:
    with pytest.raises(GenerationError, match=r"guidance=3\.0"):
        model.generate_image("a red circle", cfg=3.0)  # pyright: ignore[reportCallIssue]
    with pytest.raises(GenerationError, match="'guidance' must"):
        model.generate_image("a red circle", guidance=-1)


@pytest.mark.parametrize("method", ["generate_image", "generate_video"])
def test_a_model_without_a_head(writer: Vila, method: str) -> None:
    with pytest.raises(ConfigError, match=r"answers in text only: it has no generation head. VILA-U models"):
        getattr(writer, method)("a red circle")


def test_a_head_that_draws_no_videos() -> None:
    model = with_head({"image": TINY_KINDS["image"]})
    with pytest.raises(ConfigError, match="draws image only, not video"):
        model.generate_video("a red circle")


def test_a_tokenizer_without_the_start_token() -> None:
    model = with_head({"image": OutputKind("<im_start>", 4)})
    with pytest.raises(CheckpointError, match="no token <im_start>"):
        model.generate_image("a red circle")


def test_guidance_of_a_model_that_was_not_trained_for_it() -> None:
    model = with_head({"image": OutputKind(SENTINEL_TOKEN, 4, knows_empty_prompt=False)})
    with pytest.warns(UserWarning, match=r"not trained to draw images without a prompt.*guidance=1 turns it off"):
        model.generate_image("a red circle", seed=0)


def test_the_parts_of_an_answer(model: Vila, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model says a word, draws, and says another."""
    words = [model.tokenizer.encode(text)[-1] for text in ("red", SENTINEL_TOKEN, "blue")]
    script: Iterator[int] = iter(words)
    logits = model.network.llm.logits

    def steered(hidden: torch.Tensor) -> torch.Tensor:
        scores = logits(hidden)
        scores[:, next(script)] = 1e4
        return scores

    monkeypatch.setattr(model.network.llm, "logits", steered)
    completion = model.complete("Draw a circle.", max_new_tokens=3, seed=0)
    first, image, last = completion.parts
    assert (first, last) == ("red", "blue")
    assert isinstance(image, PIL.Image.Image)
    assert image.size == (36, 36)
    assert completion.text == "redblue"
    assert completion.token_ids == words
    assert "<img" in completion._repr_html_()  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("method", ["generate", "chat", "generate_batch", "stream"])
def test_texts_say_that_a_picture_is_left_out(model: Vila, method: str) -> None:
    begins = {model.tokenizer.encode(SENTINEL_TOKEN)[-1]: 100.0}
    prompts = ["Draw a circle."] * 2 if method == "generate_batch" else "Draw a circle."
    with pytest.warns(UserWarning, match=r"The model drew a picture in its answer.*complete\(\) returns what it draws"):
        list(getattr(model, method)(prompts, max_new_tokens=2, logit_bias=begins))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(getattr(model, method)(prompts, max_new_tokens=2, logit_bias=dict.fromkeys(begins, -100)))

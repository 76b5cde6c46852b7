"""Pictures and videos with descriptions, which the first stages train on."""

import random

from vila_train.tiny.world.combinations import SHAPES, Split, digits, letters, words_of
from vila_train.tiny.world.making import (
    UNNAMED,
    background,
    in_cell,
    others,
    scatter,
    subject,
    thing,
    unnamed,
    with_article,
)
from vila_train.tiny.world.scenes import POSITIONS, Sample, Scene, Thing
from vila_train.tiny.world.several import ORDINALS
from vila_train.tiny.world.single import bars_scene, own_bar, text_scene
from vila_train.tiny.world.videos import appearing, moving

REQUESTS = ("Describe the {}.", "What is in the {}?", "What does the {} show?", "Caption the {}.")


def describe_things(rng: random.Random, split: Split, most: int) -> tuple[Scene, str, str]:
    """Return a picture of up to `most` things, its description without a full stop, and its subject."""
    asked = subject(rng, split)
    pairs = [asked, *others(rng, split, rng.randint(0, most - 1), [asked])]
    cells = sorted(rng.sample(range(9), len(pairs)))
    rng.shuffle(pairs)
    things = tuple(thing(rng, pair, in_cell(rng, cell)) for pair, cell in zip(pairs, cells, strict=True))
    return (
        Scene(background(rng), things),
        ", ".join(f"{with_article(t.name)} ({POSITIONS[t.cell]})" for t in things),
        " ".join(asked),
    )


def describe_scattered(rng: random.Random, split: Split) -> tuple[Scene, str, str]:
    """Return a picture of up to six things of any size anywhere, its description, and its subject."""
    asked = subject(rng, split)
    pairs = [asked, *others(rng, split, rng.randint(0, 5), [asked])]
    rng.shuffle(pairs)
    largest = {1: 42, 2: 34, 3: 28}.get(len(pairs), 22)
    places = scatter(rng, [rng.uniform(14, largest) for _ in pairs])
    things = tuple(thing(rng, pair, place) for pair, place in zip(pairs, places, strict=True))
    return Scene(background(rng), things), ", ".join(with_article(t.name) for t in things), " ".join(asked)


def sentence(text: str) -> str:
    """Return `text` with a capital letter and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def caption_things(rng: random.Random, split: Split) -> Sample:
    """Describe a picture of things, in reading order."""
    scene, text, name = describe_things(rng, split, most=4)
    return Sample("caption", "things", (scene, rng.choice(REQUESTS).format("picture")), sentence(text), name)


def caption_scattered(rng: random.Random, split: Split) -> Sample:
    """Describe a picture of things anywhere, without positions."""
    scene, text, name = describe_scattered(rng, split)
    return Sample("caption", "scattered", (scene, rng.choice(REQUESTS).format("picture")), sentence(text), name)


def caption_shapes(rng: random.Random, split: Split) -> Sample:
    """Name the shapes in a picture of small things, in colors that are not those of the world.

    It shows no pair of color and shape, so none that is held out: all splits are alike.
    """
    shapes = [rng.choice(SHAPES) for _ in range(rng.randint(1, 6))]
    places = scatter(rng, [rng.uniform(12, 24) for _ in shapes])
    things = tuple(Thing(UNNAMED, shape, unnamed(rng), *place) for shape, place in zip(shapes, places, strict=True))
    text = ", ".join(with_article(shape) for shape in shapes)
    request = rng.choice(REQUESTS).format("picture")
    return Sample("caption", "shapes", (Scene(background(rng), things), request), sentence(text), shapes[0])


def caption_text(rng: random.Random, split: Split) -> Sample:
    """Describe a picture of a word or number."""
    noun, text = rng.choice(
        (("word", rng.choice(words_of(split))), ("word", letters(rng, split)), ("number", digits(rng, split)))
    )
    return Sample(
        "caption",
        "text",
        (text_scene(rng, text), rng.choice(REQUESTS).format("picture")),
        f"The {noun} {text}.",
        f"text {text}",
    )


def caption_chart(rng: random.Random, split: Split) -> Sample:
    """Read out a bar chart from left to right."""
    bar = own_bar(rng, split)
    scene = bars_scene(rng, split, bar, rng.choices(range(1, 10), k=rng.randint(2, 4)))
    text = ", ".join(f"{b.color} {b.value}" for b in scene.bars)
    return Sample(
        "caption",
        "chart",
        (scene, rng.choice(REQUESTS).format("picture")),
        f"A bar chart: {text}.",
        f"bar {bar.color} {bar.value}",
    )


def caption_pictures(rng: random.Random, split: Split, num_pictures: int) -> Sample:
    """Describe several pictures, one after another."""
    scenes, texts, names = zip(*(describe_things(rng, split, most=1) for _ in range(num_pictures)), strict=True)
    answer = "; ".join(f"{ordinal}: {text}" for ordinal, text in zip(ORDINALS, texts, strict=False))
    return Sample(
        "caption",
        f"{num_pictures} pictures",
        (*scenes, rng.choice(REQUESTS).format("pictures").replace("does", "do")),
        sentence(answer),
        names[0],
    )


def caption_video(rng: random.Random, split: Split) -> Sample:
    """Say what happens in a video."""
    request = rng.choice((*REQUESTS, "What happens in the {}?")).format("video")
    if rng.random() < 0.5:
        clip, name, direction, _ = moving(rng, split)
        return Sample(
            "caption", "motion", (clip, request), f"{sentence(with_article(name))[:-1]} moves {direction}.", name
        )
    clip, names, frames, asked = appearing(rng, split)
    text = ", ".join(f"{with_article(name)} in frame {frame}" for name, frame in zip(names, frames, strict=True))
    return Sample("caption", "appearance", (clip, request), f"There appear: {text}.", names[asked])

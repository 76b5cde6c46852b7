"""Tasks about videos of eight frames in which a thing moves, or things appear one after another."""

import random
from dataclasses import replace

from vila_train.tiny.world.combinations import Split
from vila_train.tiny.world.making import Place, background, others, scatter, subject, thing
from vila_train.tiny.world.scenes import CANVAS, Clip, Sample, Scene

NUM_FRAMES = 8

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def moving(rng: random.Random, split: Split) -> tuple[Clip, str, str, int]:
    """Return a video with one moving thing, its name, its direction, and the number of things that do not move."""
    asked = subject(rng, split)
    direction = rng.choice(tuple(DIRECTIONS))
    still = others(rng, split, rng.randint(0, 2), [asked])
    radius, step = rng.uniform(16, 26), rng.uniform(9, 16)
    path = step * (NUM_FRAMES - 1)
    dx, dy = DIRECTIONS[direction]
    free = rng.uniform(radius + 3, CANVAS - radius - 3 - path)
    start = free if dx + dy > 0 else free + path
    across = rng.uniform(radius + 3, CANVAS - radius - 3)
    x, y = (start, across) if dx else (across, start)
    track: list[Place] = [(x + dx * step * i, y + dy * step * i, radius) for i in range(NUM_FRAMES)]

    def off_the_track(places: list[Place]) -> bool:
        return all((a - b) ** 2 + (c - d) ** 2 > (r + s + 4) ** 2 for a, c, r in places for b, d, s in track)

    places = scatter(rng, [rng.uniform(14, 20) for _ in still], off_the_track)
    things = [thing(rng, p, place) for p, place in zip(still, places, strict=True)]
    mover = thing(rng, asked, track[0])
    ground = background(rng)
    frames = tuple(Scene(ground, (*things, replace(mover, x=px, y=py))) for px, py, _ in track)
    return Clip(frames), mover.name, direction, len(still)


def motion(rng: random.Random, split: Split) -> Sample:
    """Ask in which direction a thing moves, or which thing moves."""
    clip, name, direction, num_still = moving(rng, split)
    if num_still and rng.random() < 0.4:
        return Sample(
            "motion",
            "what",
            (clip, rng.choice(("What moves?", "Which object is moving?", "What is in motion?"))),
            name,
            name,
        )
    question = rng.choice(
        ("Which way does the {} move?", "In which direction does the {} move?", "Where is the {} going?")
    ).format(name)
    return Sample("motion", "direction", (clip, question), direction, name)


def appearing(rng: random.Random, split: Split) -> tuple[Clip, list[str], list[int], int]:
    """Return a video in which two or three things appear, their names, their frames, and the index of the subject.

    Names and frames (counted from 1) are in order of appearance.
    """
    asked = subject(rng, split)
    pairs = [asked, *others(rng, split, rng.randint(1, 2), [asked])]
    rng.shuffle(pairs)
    frames = sorted(rng.sample(range(1, NUM_FRAMES + 1), len(pairs)))
    things = [
        thing(rng, p, place) for p, place in zip(pairs, scatter(rng, [rng.uniform(18, 30) for _ in pairs]), strict=True)
    ]
    ground = background(rng)
    clip = Clip(
        tuple(
            Scene(ground, tuple(t for t, f in zip(things, frames, strict=True) if f <= i))
            for i in range(1, NUM_FRAMES + 1)
        )
    )
    return clip, [t.name for t in things], frames, pairs.index(asked)


def appearance(rng: random.Random, split: Split) -> Sample:
    """Ask what appears first, last or after another thing, or in which frame a thing appears."""
    clip, names, frames, asked = appearing(rng, split)
    places = [
        kind
        for kind, applies in (("first", asked == 0), ("last", asked == len(names) - 1), ("after", asked > 0))
        if applies
    ]
    kind = rng.choice(("when", rng.choice(places or ["when"])))
    if kind == "when":
        question = rng.choice(("In which frame does the {} appear?", "When does the {} appear?")).format(names[asked])
        return Sample("appearance", kind, (clip, question), str(frames[asked]), names[asked])
    if kind == "after":
        question = rng.choice(("What appears after the {}?", "What comes after the {}?")).format(names[asked - 1])
    else:
        question = rng.choice(("What appears {}?", "Which object appears {}?", "What comes {}?")).format(kind)
    return Sample("appearance", kind, (clip, question), names[asked], names[asked])

"""Tasks about several pictures: pairs, and in-context examples."""

import random
from dataclasses import replace

from vila_train.tiny.world.combinations import COLORS, SHAPES, Pair, Split, visible_objects
from vila_train.tiny.world.making import background, others, scatter, shade, subject, thing
from vila_train.tiny.world.scenes import Sample, Scene

ORDINALS = ("first", "second", "third", "fourth")

MADE_UP_LABELS = ("dax", "wug", "blick", "fep", "toma", "zup", "kiv", "nolo")


def pair(rng: random.Random, split: Split) -> Sample:
    """Ask whether two pictures are the same, which one shows a thing, or which one shows more things."""
    return rng.choice((_same, _which, _more))(rng, split)


def _same(rng: random.Random, split: Split) -> Sample:
    asked = subject(rng, split)
    pairs = [asked, *others(rng, split, rng.randint(0, 2), [asked])]
    places = scatter(rng, [rng.uniform(18, 32) for _ in pairs])
    things = [thing(rng, p, place) for p, place in zip(pairs, places, strict=True)]
    first = Scene(background(rng), tuple(things))
    same = rng.random() < 0.5
    if not same:
        things[0] = thing(rng, _like(rng, split, asked, pairs), places[0])
    pictures = [first, replace(first, things=tuple(things))]
    rng.shuffle(pictures)
    question = rng.choice(
        ("Are the two pictures the same?", "Do both pictures show the same?", "Are these pictures equal?")
    )
    return Sample("pair", "same", (*pictures, question), "yes" if same else "no", " ".join(asked))


def _like(rng: random.Random, split: Split, asked: Pair, taken: list[Pair]) -> Pair:
    """Return an object that is not in `taken` and shares its color or shape with `asked`, to be hard to tell apart."""
    return rng.choice([p for p in visible_objects(split) if p not in taken and (p[0] == asked[0] or p[1] == asked[1])])


def _scatter_things(rng: random.Random, pairs: list[Pair], smallest: float, largest: float) -> Scene:
    places = scatter(rng, [rng.uniform(smallest, largest) for _ in pairs])
    return Scene(background(rng), tuple(thing(rng, p, place) for p, place in zip(pairs, places, strict=True)))


def _which(rng: random.Random, split: Split) -> Sample:
    asked = subject(rng, split)
    other = _like(rng, split, asked, [asked])
    pictures = [
        _scatter_things(rng, [wanted, *others(rng, split, rng.randint(0, 2), [asked, other])], 18, 32)
        for wanted in (asked, other)
    ]
    answer = rng.randrange(2)
    if answer:
        pictures.reverse()
    question = rng.choice(
        ("Which picture has a {}?", "Which picture shows a {}?", "In which picture is the {}?")
    ).format(" ".join(asked))
    return Sample("pair", "which", (*pictures, question), ORDINALS[answer], " ".join(asked))


def _more(rng: random.Random, split: Split) -> Sample:
    asked = subject(rng, split)
    counts = rng.sample(range(1, 6), 2)
    pictures = [_scatter_things(rng, [asked, *others(rng, split, n - 1, [asked])], 16, 24) for n in counts]
    question = rng.choice(("Which picture has more objects?", "Which picture shows more objects?"))
    return Sample("pair", "more", (*pictures, question), ORDINALS[0 if counts[0] > counts[1] else 1], " ".join(asked))


def in_context(rng: random.Random, split: Split) -> Sample:
    """Three labelled pictures, then one to label. What the labels mean must be seen from the examples."""
    kind = rng.choice(("color", "shape", "count", "made-up"))
    asked = subject(rng, split)
    if kind == "made-up":
        return _made_up(rng, split, asked)
    pairs = [
        *others(rng, split, 3, [asked], distinct={"color": "color", "shape": "shape", "count": "pair"}[kind]),
        asked,
    ]
    counts = rng.sample(range(1, 5), 4) if kind == "count" else [1] * 4
    labels = [{"color": p[0], "shape": p[1], "count": str(n)}[kind] for p, n in zip(pairs, counts, strict=True)]
    return _shots(rng, kind, pairs, counts, labels)


def _made_up(rng: random.Random, split: Split, asked: Pair) -> Sample:
    """Show examples of two colors or two shapes with made-up names, and ask for the name of the last picture."""
    axis = rng.randrange(2)
    classes = [asked[axis], rng.choice([c for c in (tuple(COLORS), SHAPES)[axis] if c != asked[axis]])]
    members = rng.choice(((0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (0, 0, 1), (1, 1, 0)))
    names = rng.sample(MADE_UP_LABELS, 2)
    # The other attribute differs in every picture, so that it gives no hint.
    pairs = [asked]
    for member in members:
        used = [p[1 - axis] for p in pairs]
        pairs.append(
            rng.choice([p for p in visible_objects(split) if p[axis] == classes[member] and p[1 - axis] not in used])
        )
    return _shots(rng, "made-up", [*pairs[1:], asked], [1] * 4, [*(names[member] for member in members), names[0]])


def _shots(rng: random.Random, kind: str, pairs: list[Pair], counts: list[int], labels: list[str]) -> Sample:
    prompt: list[str | Scene] = []
    for index, (p, n, label) in enumerate(zip(pairs, counts, labels, strict=True)):
        places = scatter(rng, [rng.uniform(20, 36) if n == 1 else rng.uniform(16, 26) for _ in range(n)])
        color = shade(rng, p[0])
        prompt.append(Scene(background(rng), tuple(replace(thing(rng, p, place), rgb=color) for place in places)))
        prompt.append(f"Answer: {label}\n" if index < 3 else "Answer:")
    return Sample("in_context", kind, tuple(prompt), labels[-1], " ".join(pairs[-1]))

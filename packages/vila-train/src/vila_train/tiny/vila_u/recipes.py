"""The recipe of vila-tiny-u: the tower's own stage, then the language model with projector and head, from nothing.

The stages are those of VILA-U (arXiv 2409.04429): the tower is trained first and frozen then; pretraining and SFT see
pictures and draw them. One in ten of the pictures to be drawn has no description, so that guidance works. SFT has a
short second round, which teaches colors and shapes apart.
"""

from vila_train.tiny.recipes import SINGLE, SINGLE_CAPTIONS, Draw, StageConfig
from vila_train.tiny.world import DRAWINGS, TINY_U_CAPTIONS

TOWER_STAGE = "tower"
CAPTIONS = (*SINGLE_CAPTIONS, "caption_scattered")
QUESTIONS = {
    "attribute": 28,
    "count": 36,
    "position": 28,
    "relation": 40,
    "size": 36,
    "word": 40,
    "number": 32,
    "chart": 16,
}
"""Questions of a batch. Tasks that were learned late in trials have more."""
QUESTIONS_APART = {"attribute_without_hints": 44, "place_of_shape": 16} | {
    task: count for task, count in QUESTIONS.items() if task != "attribute"
}


def tower() -> StageConfig:
    """Pictures and descriptions: reconstruction, commitment and contrast. Nothing else is trained."""
    return StageConfig(
        name=TOWER_STAGE,
        tune_vision_tower=True,
        tune_projector=False,
        tune_language_model=False,
        steps=8000,
        learning_rate=1e-3,
        draws=(
            Draw(
                counts={
                    "caption_things": 64,
                    "caption_scattered": 64,
                    "caption_shapes": 56,
                    "caption_text": 48,
                    "caption_chart": 24,
                },
            ),
        ),
        weight_decay=0.01,
        evaluate_every=2000,
    )


def pretrain() -> StageConfig:
    """Descriptions of pictures, and pictures of descriptions. The tower is frozen."""
    return StageConfig(
        name="pretrain",
        tune_vision_tower=False,
        tune_projector=True,
        tune_language_model=True,
        steps=4000,
        learning_rate=1.5e-3,
        draws=(
            Draw(counts=dict.fromkeys(CAPTIONS, 48)),
            Draw(counts={"draw_things": 180, "draw_anywhere": 50, "draw_nothing": 26}),
        ),
        weight_decay=0.02,
    )


def sft() -> StageConfig:
    """The tasks about one picture, some descriptions, and pictures of descriptions."""
    return pretrain().model_copy(
        update={
            "name": "sft",
            "steps": 14000,
            "learning_rate": 1e-3,
            "draws": (
                Draw(counts={**QUESTIONS, **dict.fromkeys(CAPTIONS, 8)}),
                Draw(counts={"draw_things": 88, "draw_anywhere": 20, "draw_nothing": 12}),
            ),
        }
    )


def sft_apart() -> StageConfig:
    """The same with questions that teach colors and shapes apart.

    After `sft`, the model knows which pairs of color and shape exist: asked for the color of one of several things, it
    names that of a thing whose pair it has seen.
    """
    return sft().model_copy(
        update={
            "name": "sft_apart",
            "steps": 4000,
            "learning_rate": 5e-4,
            "draws": (
                Draw(counts={**QUESTIONS_APART, **dict.fromkeys((*CAPTIONS, "caption_shapes"), 8)}),
                *sft().draws[1:],
            ),
        }
    )


def tiny_u_stages() -> tuple[StageConfig, ...]:
    """Return the stages of vila-tiny-u in order."""
    return (tower(), pretrain(), sft(), sft_apart())


def draws_pictures(draw: Draw) -> bool:
    """Return whether the pictures of these samples are answers."""
    return all(source in DRAWINGS for source in draw.counts)


TINY_U_SAMPLES: dict[str, int] = {
    "caption_things": 50_000,
    **dict.fromkeys(TINY_U_CAPTIONS, 50_000),
    "caption_text": 30_000,
    "caption_chart": 25_000,
    "draw_things": 90_000,
    "draw_anywhere": 25_000,
    "draw_nothing": 10_000,
    **dict.fromkeys(SINGLE, 100_000),
    "attribute_without_hints": 75_000,
    "place_of_shape": 25_000,
}
"""Number of training samples to render for each source: 1,230,000 pictures. A frozen tower turns a picture into the
same codes each time, which are easy to memorize: with 20,000 questions per task, 96 % of the answers to these were
right, and 78 % of those to new ones."""

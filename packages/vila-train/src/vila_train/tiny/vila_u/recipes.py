"""The recipe of vila-tiny-u: the tower's own stage, then the language model with projector and head, from nothing.

The stages are those of VILA-U (arXiv 2409.04429): the tower is trained first and frozen then; pretraining and SFT see
pictures and draw them. One in ten of the pictures to be drawn has no description, so that guidance works.
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


def tiny_u_stages() -> tuple[StageConfig, ...]:
    """Return the stages of vila-tiny-u in order."""
    return (tower(), pretrain(), sft())


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
}
"""Number of training samples to render for each source: 1,130,000 pictures. A frozen tower turns a picture into the
same codes each time, which are easy to memorize: with 20,000 questions per task, 96 % of the answers to these were
right, and 78 % of those to new ones."""

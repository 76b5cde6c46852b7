"""The recipe of vila-tiny: one function per stage that returns its configuration.

The four stages are those of NVILA (align, stage 1.5, pretrain, SFT; arXiv 2412.04468). NVILA starts from a trained
tower and a trained language model, but vila-tiny starts from random weights, so its first stage tunes all parts. The
later stages freeze the same parts as NVILA. SFT has a short second round.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from vila_core.config import Config
from vila_core.errors import ConfigError, unknown_name

SINGLE = ("attribute", "count", "position", "relation", "size", "word", "number", "chart")
SINGLE_CAPTIONS = ("caption_things", "caption_text", "caption_chart")


class Draw(Config):
    """Part of every batch: the number of samples from each source. All sources have the same number of pictures."""

    counts: dict[str, PositiveInt]


class StageConfig(Config):
    """One stage of training: AdamW with a linear warm-up and a cosine down to zero, bf16 on fp32 master weights.

    A batch consists of all `draws`; the loss is the mean over all their answer tokens.
    """

    name: str
    tune_vision_tower: bool
    tune_projector: bool
    tune_language_model: bool
    steps: PositiveInt
    learning_rate: PositiveFloat
    draws: tuple[Draw, ...]
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: PositiveFloat = 1.0
    log_every: PositiveInt = 100
    evaluate_every: PositiveInt = 2000

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that the stage draws from."""
        return tuple(source for draw in self.draws for source in draw.counts)


def tiny_align() -> StageConfig:
    """Single pictures and their descriptions. All parts are tuned, since none is trained yet."""
    return StageConfig(
        name="align",
        tune_vision_tower=True,
        tune_projector=True,
        tune_language_model=True,
        steps=4000,
        learning_rate=1.5e-3,
        draws=(Draw(counts={"caption_things": 192, "caption_text": 192, "caption_chart": 128}),),
        weight_decay=0.02,
    )


def tiny_stage1_5() -> StageConfig:
    """The same data with the language model frozen, so that the tower adapts to it."""
    return tiny_align().model_copy(
        update={"name": "stage1_5", "tune_language_model": False, "steps": 500, "learning_rate": 5e-4}
    )


def tiny_pretrain() -> StageConfig:
    """Descriptions of several pictures and of videos. The tower is frozen."""
    return StageConfig(
        name="pretrain",
        tune_vision_tower=False,
        tune_projector=True,
        tune_language_model=True,
        steps=1500,
        learning_rate=1e-3,
        draws=(
            Draw(counts={"caption_things": 48, "caption_text": 24, "caption_chart": 24}),
            Draw(counts={"caption_two": 64}),
            Draw(counts={"caption_four": 32}),
            Draw(counts={"caption_video": 96}),
        ),
        weight_decay=0.02,
    )


def tiny_sft() -> StageConfig:
    """All tasks and some descriptions. All parts are tuned."""
    return StageConfig(
        name="sft",
        tune_vision_tower=True,
        tune_projector=True,
        tune_language_model=True,
        steps=18000,
        learning_rate=1e-3,
        draws=(
            Draw(counts={**dict.fromkeys(SINGLE, 24), **dict.fromkeys(SINGLE_CAPTIONS, 6)}),
            Draw(counts={"pair": 40, "caption_two": 6}),
            Draw(counts={"in_context": 28, "caption_four": 4}),
            Draw(counts={"motion": 12, "appearance": 20, "caption_video": 4}),
        ),
        weight_decay=0.02,
    )


def tiny_sft_any_order() -> StageConfig:
    """A short second round of SFT with questions before and after the pictures."""
    single: dict[str, int] = {
        **dict.fromkeys(SINGLE, 12),
        **{f"{task}_asked": 12 for task in SINGLE},
        **dict.fromkeys(SINGLE_CAPTIONS, 6),
    }
    return tiny_sft().model_copy(
        update={
            "name": "sft_any_order",
            "steps": 2600,
            "learning_rate": 3e-4,
            "draws": (
                Draw(counts=single),
                Draw(counts={"pair": 20, "pair_asked": 20, "caption_two": 6}),
                Draw(counts={"in_context": 28, "caption_four": 4}),
                Draw(
                    counts={
                        "motion": 6,
                        "motion_asked": 6,
                        "appearance": 10,
                        "appearance_asked": 10,
                        "caption_video": 4,
                    }
                ),
            ),
        }
    )


def tiny_stages() -> tuple[StageConfig, ...]:
    """Return the stages of vila-tiny in order."""
    return (tiny_align(), tiny_stage1_5(), tiny_pretrain(), tiny_sft(), tiny_sft_any_order())


def choose_stages(names: Sequence[str], recipe: Sequence[StageConfig]) -> tuple[StageConfig, ...]:
    """Return the named stages of a recipe in training order, or all if `names` is empty.

    Raises:
        ConfigError: unknown stage.
    """
    stages = {stage.name: stage for stage in recipe}
    for name in names:
        if name not in stages:
            raise ConfigError(unknown_name("stage", name, stages))
    return tuple(stage for name, stage in stages.items() if not names or name in names)


TINY_SAMPLES: dict[str, int] = {
    **dict.fromkeys(SINGLE, 60_000),
    "pair": 50_000,
    "in_context": 40_000,
    "motion": 36_000,
    "appearance": 40_000,
    "caption_things": 80_000,
    "caption_text": 50_000,
    "caption_chart": 50_000,
    "caption_two": 16_000,
    "caption_four": 10_000,
    "caption_video": 16_000,
    **{f"{task}_asked": 8_000 for task in (*SINGLE, "pair")},
    "motion_asked": 4_000,
    "appearance_asked": 4_000,
}
"""Number of training samples to render of each source."""

"""Settings of image generation: guidance, sampling, seed and negative prompt."""

from collections.abc import Mapping
from typing import TypedDict

from pydantic import Field, ValidationError

from vila_core.config import Settings
from vila_core.display.signatures import named_settings
from vila_core.engine.settings import as_generation_error
from vila_core.errors import GenerationError

_GUIDANCE = "How strictly the prompt is followed is set with guidance, such as guidance=3.0; 1 is off."
_SIZE = "The size of a picture is the model's own, and cannot be chosen."
OTHER_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("cfg", "cfg_scale", "guidance_scale", "classifier_free_guidance"), _GUIDANCE),
    **dict.fromkeys(
        ("num_images", "num_images_per_prompt", "generation_nums", "batch_size"),
        "The number of pictures is set with n.",
    ),
    **dict.fromkeys(("size", "width", "height", "resolution", "image_size"), _SIZE),
    **dict.fromkeys(("generator", "random_seed"), "The seed is set with seed."),
    "num_inference_steps": "A picture always takes as many steps as it has positions.",
}
"""Names of other libraries -> what to use instead."""


class DrawingSettings(TypedDict, total=False):
    """The keyword arguments of `generate_image` and `generate_video`: the fields of `DrawingConfig`.

    Attributes:
        guidance: how strictly the prompt is followed (default 3); 1 is off, and twice as fast.
        temperature: 0 always takes the likeliest codes; higher values give more varied pictures (default 1).
        top_k: choose among the k likeliest codes only (default 900); 0 is off.
        top_p: choose among the likeliest codes that together have this probability (default 0.96); 1 is off.
        seed: makes drawing repeatable.
        negative_prompt: what the picture should not show.
    """

    guidance: float
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    negative_prompt: str


takes_drawing_settings = named_settings(
    DrawingSettings,
    {"guidance": 3.0, "temperature": 1.0, "top_k": 900, "top_p": 0.96, "seed": None, "negative_prompt": ""},
)


class DrawingConfig(Settings):
    """Settings of image generation. Values are validated on construction; `GenerationError` says what is wrong.

    Attributes:
        guidance: how strictly the prompt is followed: scores are u + guidance · (c - u), where c come from the prompt
            and u from the negative prompt (Ho and Salimans 2022). 1 is the prompt alone, and twice as fast.
        temperature: 0 always takes the likeliest codes.
        top_k: choose among the k likeliest codes only, ties included; 0 is off.
        top_p: choose among the likeliest codes that together have this probability; 1 is off.
        seed: makes drawing repeatable; each picture of a prompt has its own numbers.
        negative_prompt: what to move away from; empty: nothing in particular.
    """

    guidance: float = Field(default=3.0, ge=0, le=100, allow_inf_nan=False)
    temperature: float = Field(default=1.0, ge=0, le=1e6, allow_inf_nan=False)
    top_k: int = Field(default=900, ge=0)
    top_p: float = Field(default=0.96, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    negative_prompt: str = Field(default="", max_length=100_000)

    @classmethod
    def _as_error(cls, error: ValidationError) -> GenerationError:
        return as_generation_error(error, "drawing", cls.model_fields, OTHER_NAMES)

    @property
    def is_guided(self) -> bool:
        return self.guidance != 1

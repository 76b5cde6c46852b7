"""Base classes of all configs, and types of numbers within the limits of `size_limits`."""

from collections.abc import Sized
from contextvars import ContextVar
from typing import Annotated, Any, Self, TypeVar, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_validator,
)

from vila_core import size_limits
from vila_core.errors import SettingError, VilaError, first_problem

Width = Annotated[int, Field(gt=0, le=size_limits.MAX_WIDTH)]
InnerWidth = Annotated[int, Field(gt=0, le=size_limits.MAX_INNER_WIDTH)]
Layers = Annotated[int, Field(gt=0, le=size_limits.MAX_LAYERS)]
Heads = Annotated[int, Field(gt=0, le=size_limits.MAX_HEADS)]
Positions = Annotated[int, Field(gt=0, le=size_limits.MAX_CONTEXT)]
Pixels = Annotated[int, Field(gt=0, le=size_limits.MAX_IMAGE_SIZE)]
Tiles = Annotated[int, Field(gt=0, le=size_limits.MAX_TILES)]
Frames = Annotated[int, Field(gt=0, le=size_limits.MAX_VIDEO_FRAMES)]
Epsilon = Annotated[float, Field(gt=0, le=1)]
RopeFactor = Annotated[float, Field(gt=0, le=size_limits.MAX_ROPE_FACTOR)]
Mean = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(ge=size_limits.MIN_STD, le=size_limits.MAX_STD)]


def _check_list(value: object) -> object:
    if value is not None and not isinstance(value, list | tuple | set | frozenset):
        raise ValueError("expected a list")
    if len(cast("Sized", value or ())) > MAX_LISTED:
        raise ValueError(f"it has more than {MAX_LISTED:,} entries")
    return cast("object", value)


Item = TypeVar("Item")
MAX_LISTED = 10_000
Listed = Annotated[tuple[Item, ...], BeforeValidator(_check_list)]
"""What a user lists. Not an iterator, which may have no end."""


class Config(BaseModel):
    """Base class: frozen, unknown keys are errors. Validators are built on first use, which keeps imports fast."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)


_validates_settings = ContextVar("_validates_settings", default=False)


class Settings(Config):
    """Base class of settings that users write in Python: `SettingError` says what is wrong with a value.

    Settings may consist of settings. The error then names the path from the outermost, such as `data.max_length`.
    """

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, handler: ValidatorFunctionWrapHandler) -> Self:
        if _validates_settings.get():
            return handler(values)
        outermost = _validates_settings.set(True)
        try:
            return handler(values)
        except ValidationError as error:
            raise cls._as_error(error) from None
        finally:
            _validates_settings.reset(outermost)

    @classmethod
    def _as_error(cls, error: ValidationError) -> VilaError:
        """Return what the user sees."""
        return SettingError(cls.__name__, first_problem(error))

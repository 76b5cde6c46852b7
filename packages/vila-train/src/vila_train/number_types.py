"""Types of numbers in settings: true and infinity are not numbers, as pydantic would have it."""

from typing import Annotated

from pydantic import BeforeValidator, Field


def _refuse_booleans(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


_Int = Annotated[int, BeforeValidator(_refuse_booleans)]
_Float = Annotated[float, BeforeValidator(_refuse_booleans), Field(allow_inf_nan=False)]

PositiveInt = Annotated[_Int, Field(gt=0)]
NonNegativeInt = Annotated[_Int, Field(ge=0)]
PositiveFloat = Annotated[_Float, Field(gt=0)]
NonNegativeFloat = Annotated[_Float, Field(ge=0)]
Seed = Annotated[_Int, Field(ge=0, lt=2**63)]
Ratio = Annotated[_Float, Field(ge=0, lt=1)]

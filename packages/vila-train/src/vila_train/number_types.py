"""Types of numbers in settings: true and infinity are not numbers, as pydantic would have it."""

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

LARGEST = 1e15
"""The product of two such numbers, as AdamW makes, is one in fp32."""


def _refuse_booleans(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


_Int = Annotated[int, BeforeValidator(_refuse_booleans)]


def _refuse_huge_numbers(value: float) -> float:
    if abs(value) > LARGEST:
        raise ValueError(f"must be {LARGEST:g} or less")
    return value


_Float = Annotated[
    float, BeforeValidator(_refuse_booleans), Field(allow_inf_nan=False), AfterValidator(_refuse_huge_numbers)
]

PositiveInt = Annotated[_Int, Field(gt=0)]
NonNegativeInt = Annotated[_Int, Field(ge=0)]
PositiveFloat = Annotated[_Float, Field(gt=0)]
NonNegativeFloat = Annotated[_Float, Field(ge=0)]
Seed = Annotated[_Int, Field(ge=0, lt=2**63)]
Ratio = Annotated[_Float, Field(ge=0, lt=1)]

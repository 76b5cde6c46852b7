"""vila-tiny and vila-tiny-u, whose stages are in `vila_train.tiny.recipes` and `vila_train.tiny.vila_u.recipes`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from vila_core.config import Listed, Settings
from vila_train.number_types import PositiveFloat, PositiveInt, Seed


class TinyConfig(Settings):
    """All stages of a tiny model, on data that is drawn for them.

    Attributes:
        name: of the recipe and the model.
        seed: random seed of the weights and batches.
        scale: factor on the numbers of steps and samples, below 1 for a trial.
        device: "cuda", "cuda:1", "cpu", or "auto" for a GPU if there is one.
        compile: compile the layers.
        workers: rendering processes; None: one per CPU core, minus one.
        scratch: folder for rendered samples, 45 GB at scale 1 (vila-tiny-u: 31 GB); None: OUT/scratch.
        init: checkpoint to start from (vila-tiny-u: its stages after the tower's); None: random weights.
        stages: run only these; empty: all.
    """

    name: Literal["vila-tiny", "vila-tiny-u"] = "vila-tiny"
    seed: Seed = 0
    scale: Annotated[PositiveFloat, Field(ge=0.0001, le=100)] = 1.0
    device: str = "cuda"
    compile: bool = True
    workers: PositiveInt | None = None
    scratch: Path | None = None
    init: Path | None = None
    stages: Listed[str] = ()


def tiny() -> TinyConfig:
    """All stages, as the embedded model was trained."""
    return TinyConfig()


def tiny_u() -> TinyConfig:
    """All stages of vila-tiny-u, which sees and draws."""
    return TinyConfig(name="vila-tiny-u")

"""Settings of the tower's own stage."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat

from vila_core.config import Config


class CodebookSettings(Config):
    """How codebooks follow the features (RQ-VAE's values).

    Attributes:
        decay: of the running averages, per step and depth.
        epsilon: keeps the size of an unused cluster above zero.
        restart_unused: replace codes that stand for less than one feature per step by features of the batch.
    """

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    epsilon: PositiveFloat = 1e-5
    restart_unused: bool = True


class TowerLossConfig(Config):
    """Weights of the losses. VILA-U weighs reconstruction and contrast alike; the commitment is RQ-VAE's."""

    reconstruction: NonNegativeFloat = 1.0
    contrast: NonNegativeFloat = 1.0
    commitment: NonNegativeFloat = 0.25
    codebooks: CodebookSettings = CodebookSettings()

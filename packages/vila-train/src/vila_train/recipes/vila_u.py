"""VILA-U: the reference's `scripts/train` (pretrain, SFT), where the prepared tower stays frozen.

Its data sets of pictures to be drawn are not public: add your own with `--data`. Its scripts start 4,096 samples per
step, although they name 512; the paper gives no number.
"""

from vila_train.config import DataConfig, OptimizerConfig, Part, TrainConfig
from vila_train.recipes.mixtures import VILA_U_PRETRAIN, VILA_U_SFT

_TRAINED: tuple[Part, ...] = ("projector", "language_model", "generation_head")


def pretrain() -> TrainConfig:
    """Captions, interleaved documents and pictures to be drawn, from a language model and a prepared tower."""
    return TrainConfig(
        name="vila-u-pretrain",
        tune=_TRAINED,
        data=DataConfig(mixture=VILA_U_PRETRAIN, max_length=8192, samples_per_step=4096),
        optimizer=OptimizerConfig(learning_rate=5e-5),
    )


def sft() -> TrainConfig:
    """Instructions, and pictures and videos to be drawn."""
    return TrainConfig(
        name="vila-u-sft",
        tune=_TRAINED,
        data=DataConfig(mixture=VILA_U_SFT, max_length=8192, samples_per_step=4096),
        optimizer=OptimizerConfig(learning_rate=1e-4),
    )

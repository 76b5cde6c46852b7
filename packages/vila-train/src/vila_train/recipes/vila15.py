"""VILA-1.5: the reference's `scripts/v1_5` (align, pretrain, SFT), with the rates of its released models."""

from vila_train.config import DataConfig, ModelConfig, NewModel, OptimizerConfig, TrainConfig
from vila_train.recipes.mixtures import ALIGN, PRETRAIN, SFT


def align() -> TrainConfig:
    """Train a new 2x2 projector between Vicuna 13B and SigLIP, as in VILA1.5-13B."""
    return TrainConfig(
        name="vila1.5-align",
        model=ModelConfig(
            new=NewModel(
                language_model="lmsys/vicuna-13b-v1.5",
                vision_tower="google/siglip-so400m-patch14-384",
                projector="mlp_downsample",
            ),
            chat_template="vicuna_v1",
            image_aspect_ratio="resize",
        ),
        tune=("projector",),
        data=DataConfig(mixture=ALIGN, max_length=4096, samples_per_step=2048),
        optimizer=OptimizerConfig(learning_rate=1e-3),
    )


def pretrain() -> TrainConfig:
    """COYO-25M and MMC4-core. The released models use 512 to 1024 samples per step."""
    return TrainConfig(
        name="vila1.5-pretrain",
        tune=("projector", "language_model"),
        data=DataConfig(mixture=PRETRAIN, max_length=4096, samples_per_step=1024),
        optimizer=OptimizerConfig(learning_rate=5e-5),
    )


def sft() -> TrainConfig:
    """Instructions, for the models of 3B to 13B."""
    return TrainConfig(
        name="vila1.5-sft",
        tune=("projector", "vision_tower", "language_model"),
        data=DataConfig(mixture=SFT, max_length=4096, samples_per_step=512),
        optimizer=OptimizerConfig(learning_rate=1e-4),
    )


def sft_40b() -> TrainConfig:
    """Instructions, for the 40B model."""
    config = sft()
    optimizer = config.optimizer.model_copy(update={"learning_rate": 2e-5})
    return config.model_copy(update={"name": "vila1.5-sft-40b", "optimizer": optimizer})

"""NVILA with dynamic S2: the reference's `scripts/NVILA/{stage1,stage15,stage2,stage3}_9tile.sh`."""

from vila_train.config import DataConfig, ModelConfig, NewModel, OptimizerConfig, TrainConfig
from vila_train.recipes.mixtures import ALIGN, PRETRAIN, SFT, STAGE1_5
from vila_train.recipes.nvila_lite import TOWER


def align() -> TrainConfig:
    """Train a new 2x2 projector on scales of 448, 896 and 1344 pixels: 1, 4 and up to 9 tiles."""
    return TrainConfig(
        name="nvila-align",
        model=ModelConfig(
            new=NewModel(language_model="Qwen/Qwen2.5-7B-Instruct", vision_tower=TOWER, projector="mlp_downsample"),
            chat_template="qwen2",
            image_aspect_ratio="dynamic_s2",
            s2_scales=(448, 896, 1344),
        ),
        tune=("projector",),
        data=DataConfig(mixture=ALIGN, max_length=8192, samples_per_step=512),
        optimizer=OptimizerConfig(learning_rate=1e-3),
    )


def stage1_5() -> TrainConfig:
    """Adapt the tower."""
    return TrainConfig(
        name="nvila-stage1.5",
        tune=("projector", "vision_tower"),
        data=DataConfig(mixture=STAGE1_5, max_length=8192, samples_per_step=1024),
        optimizer=OptimizerConfig(learning_rate=2e-5, clip_norm=5.0),
    )


def pretrain() -> TrainConfig:
    """Interleaved images and text."""
    return TrainConfig(
        name="nvila-pretrain",
        tune=("projector", "language_model"),
        data=DataConfig(mixture=PRETRAIN, max_length=8192, samples_per_step=1024),
        optimizer=OptimizerConfig(learning_rate=2e-5),
    )


def sft() -> TrainConfig:
    """Instructions; also how to fine-tune NVILA on data of your own."""
    return TrainConfig(
        name="nvila-sft",
        tune=("projector", "vision_tower", "language_model"),
        data=DataConfig(mixture=SFT, max_length=8192, samples_per_step=1024),
        optimizer=OptimizerConfig(learning_rate=1.5e-5, clip_norm=5.0),
    )

"""NVILA-Lite: the reference's `scripts/NVILA-Lite/{align,stage15,pretrain,sft}.sh`.

The mixtures of the reference have no public entries; these are public data sets of the same kinds.
"""

from vila_train.config import DataConfig, ModelConfig, NewModel, OptimizerConfig, TrainConfig
from vila_train.recipes.mixtures import ALIGN, PRETRAIN, SFT, STAGE1_5

TOWER = "Efficient-Large-Model/paligemma-siglip-so400m-patch14-448"


def align() -> TrainConfig:
    """Train a new 3x3 projector; images become up to 12 tiles."""
    return TrainConfig(
        name="nvila-lite-align",
        model=ModelConfig(
            new=NewModel(
                language_model="Efficient-Large-Model/Qwen2-VL-7B-Instruct",
                vision_tower=TOWER,
                projector="mlp_downsample_3x3_fix",
            ),
            chat_template="qwen2",
            image_aspect_ratio="dynamic",
            max_tiles=12,
        ),
        tune=("projector",),
        data=DataConfig(mixture=ALIGN, max_length=4096, samples_per_step=2048),
        optimizer=OptimizerConfig(learning_rate=1e-3),
    )


def stage1_5() -> TrainConfig:
    """Adapt the tower."""
    return TrainConfig(
        name="nvila-lite-stage1.5",
        tune=("projector", "vision_tower"),
        data=DataConfig(mixture=STAGE1_5, max_length=4096, samples_per_step=1024),
        optimizer=OptimizerConfig(learning_rate=5e-5),
    )


def pretrain() -> TrainConfig:
    """Interleaved images and text."""
    return TrainConfig(
        name="nvila-lite-pretrain",
        tune=("projector", "language_model"),
        data=DataConfig(mixture=PRETRAIN, max_length=4096, samples_per_step=1024),
        optimizer=OptimizerConfig(learning_rate=5e-5),
    )


def sft() -> TrainConfig:
    """Instructions; also how to fine-tune NVILA-Lite on data of your own."""
    return TrainConfig(
        name="nvila-lite-sft",
        tune=("projector", "vision_tower", "language_model"),
        data=DataConfig(mixture=SFT, max_length=4096, samples_per_step=2048),
        optimizer=OptimizerConfig(learning_rate=2e-5),
    )

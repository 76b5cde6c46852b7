"""NVILA for long videos: the reference's `scripts/NVILA/stage4.sh`."""

from vila_train.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from vila_train.recipes.mixtures import VIDEO


def sft() -> TrainConfig:
    """256 frames, 8 of which become one; 100 time tokens with soft targets.

    A model with dynamic S2 gets a new projector, since its own expects the features of all scales.
    """
    return TrainConfig(
        name="nvila-video",
        model=ModelConfig(
            projector="mlp_downsample_2x2_fix",
            image_aspect_ratio="resize",
            s2_scales=(),
            num_video_frames=256,
            temporal_pool=8,
            num_time_tokens=100,
            max_length=16384,
        ),
        tune=("projector", "vision_tower", "language_model"),
        data=DataConfig(mixture=VIDEO, max_length=16384, samples_per_step=2048),
        optimizer=OptimizerConfig(learning_rate=2e-5),
        soft_time_tokens=1.0,
    )

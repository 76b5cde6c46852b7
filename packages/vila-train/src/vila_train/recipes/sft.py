"""Fine-tuning of a trained model on your own data: settings that follow from the model."""

from vila_core.checkpoint import open_checkpoint
from vila_core.errors import ConfigError, unknown_name
from vila_train.config import AdapterConfig, DataConfig, ModelConfig, OptimizerConfig, Part, TrainConfig

MAX_LENGTH = 8192
"""Longest samples by default, where the model's context is longer."""
METHODS = ("lora", "dora", "qlora", "norms")
ADAPTER_RATE, FULL_RATE = 1e-4, 2e-5


def fine_tuning(
    model: str, mixture: str, *, adapter: str | None = None, learning_rate: float | None = None
) -> TrainConfig:
    """Return how to fine-tune `model`.

    Without an adapter all parts are trained. With one, the language model gets it and the projector is trained in full,
    as in the reference's scripts for LoRA. The generation head of a model that draws is trained in full, and its vision
    tower stays as it is: the codes that it makes of pictures are what the head learns.

    Args:
        model: folder or hub id.
        mixture: the data.
        adapter: "lora", "dora", "qlora" or "norms"; None: train all weights.
        learning_rate: None: 2e-5, with an adapter 1e-4.

    Raises:
        CheckpointError: there is no such model.
        ConfigError: unknown adapter.
    """
    if not model.strip():
        raise ConfigError("The name of the model is empty. Name a folder or a hub id.")
    if adapter is not None and adapter not in METHODS:
        raise ConfigError(unknown_name("adapter", adapter, METHODS))
    stated = open_checkpoint(model).config
    context, draws = stated.language_model.max_length, stated.generation_head is not None
    rate = ADAPTER_RATE if adapter else FULL_RATE
    parts: tuple[Part, ...] = ("projector", "language_model", *(["generation_head"] if draws else []))
    return TrainConfig(
        name="sft" if adapter is None else f"sft-{adapter}",
        model=ModelConfig(path=model),
        tune=parts if adapter or draws else (*parts, "vision_tower"),
        data=DataConfig(mixture=mixture, max_length=min(context, MAX_LENGTH), samples_per_step=64),
        optimizer=OptimizerConfig(learning_rate=rate if learning_rate is None else learning_rate),
        adapter=None if adapter is None else AdapterConfig.model_validate({"method": adapter}),
    )

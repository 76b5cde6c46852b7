"""Plain vision transformers of timm, by name. Parameters have the prefix `model.` and timm's names.

N images, P tokens, K prefix tokens (class and register tokens), D width, S side of the image in pixels.
"""

import difflib
from typing import Any

import torch

from vila_core.config import TimmConfig
from vila_core.errors import ConfigError
from vila_core.plugins.lazy import optional_import
from vila_core.towers.positions import adapt_positions
from vila_core.towers.vit import VisionTower, check_pixels, num_layers_to_run

with optional_import("The vision tower 'timm'", "vila-core[timm]"):
    import timm  # pyright: ignore[reportMissingImports]
    from timm.models._manipulate import reinit_non_persistent_buffers  # pyright: ignore[reportMissingImports]
    from timm.models.beit import Beit  # pyright: ignore[reportMissingImports]
    from timm.models.eva import Eva  # pyright: ignore[reportMissingImports]
    from timm.models.vision_transformer import VisionTransformer  # pyright: ignore[reportMissingImports]
    from timm.models.vision_transformer_relpos import VisionTransformerRelPos  # pyright: ignore[reportMissingImports]

FAMILIES = (VisionTransformer, VisionTransformerRelPos, Eva, Beit)
"""Classes whose hidden states are all `[N, K + P, D]`. `VisionTransformer` covers DeiT, DINO, SigLIP, CLIP and more."""


def build_model(config: TimmConfig) -> Any:
    """Return the timm model without weights.

    Raises:
        ConfigError: it is unknown, not a plain ViT, or its sizes differ from those in `config`.
    """
    if not timm.is_model(config.model_name):
        nearest = ", ".join(difflib.get_close_matches(config.model_name, timm.list_models(), n=3)) or "none"
        raise ConfigError(
            f"Unknown timm model '{config.model_name}'. Similar names: {nearest}. timm.list_models() lists all models."
        )
    with torch.device("meta"):
        family: type = type(timm.create_model(config.model_name, pretrained=False, num_classes=0))
    if not issubclass(family, FAMILIES):
        known = ", ".join(known.__name__ for known in FAMILIES)
        raise ConfigError(
            f"timm model '{config.model_name}' is a {family.__name__}. "
            f"The timm tower supports plain vision transformers: {known}."
        )
    model: Any = timm.create_model(config.model_name, pretrained=False, num_classes=0, img_size=config.image_size)
    got = (model.embed_dim, model.patch_embed.grid_size[0])
    stated = (config.hidden_size, config.image_size // config.patch_size)
    if got != stated:
        raise ConfigError(
            f"timm model '{config.model_name}' at {config.image_size} pixels has width {got[0]} "
            f"and {got[1]} x {got[1]} patches, "
            f"but hidden_size and patch_size in the config mean {stated[0]} and {stated[1]} x {stated[1]}."
        )
    return model


class TimmTower(VisionTower):
    """A timm vision transformer as a tower. `patch` drops class and register tokens; `cls_patch` keeps them."""

    def __init__(self, config: TimmConfig):
        super().__init__(config)
        self.model = build_model(config)
        self.depth = num_layers_to_run(config.select_layer, len(self.model.blocks))
        if self.depth == 0:
            raise ConfigError(
                f"select_layer {config.select_layer} is the embedding, which timm does not return. "
                "Choose the output of a layer."
            )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode images: `[N, 3, S, S]` to `[N, P, D]` in the weights' dtype.

        Raises:
            ConfigError: the pixels have another shape or an integer dtype.
        """
        check_pixels(pixels, num_channels=3, image_size=self.config.image_size)
        taken: Any = self.model.forward_intermediates(
            pixels.to(self.model.patch_embed.proj.weight.dtype),
            indices=[self.depth - 1],
            return_prefix_tokens=self.model.num_prefix_tokens > 0,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )[0]
        if not self.model.num_prefix_tokens:
            return taken
        patches, prefix = taken  # [N, P, D], [N, K, D]
        return patches if self.config.select_feature == "patch" else torch.cat([prefix, patches], dim=1)

    def adapt_weight(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Resize the position embeddings `[1, P', D]` of `pretrained_image_size`. Other tensors stay unchanged."""
        if name == "model.pos_embed" and tensor.ndim == 3:
            num_prefix_tokens = self.model.pos_embed.shape[1] - self.model.patch_embed.grid_size[0] ** 2
            return adapt_positions(tensor[0], self.config, num_prefix_tokens)[None]
        return tensor

    def reset_parameters(self) -> None:
        """Initialize as timm does for this model."""
        self.model.init_weights()

    def reset_buffers(self, device: torch.device, dtype: torch.dtype) -> None:
        """Recompute the buffers that are not in checkpoints (rotary tables, indices) on `device`, in `dtype`."""
        saved = self.model.state_dict().keys()
        computed = [
            (module, name, buffer)
            for prefix, module in self.model.named_modules()
            for name, buffer in module.named_buffers(recurse=False)
            if (f"{prefix}.{name}" if prefix else name) not in saved
        ]
        for module, name, buffer in computed:
            module.register_buffer(name, torch.empty_like(buffer, device=device), persistent=False)
        reinit_non_persistent_buffers(self.model)
        for module, name, buffer in computed:
            if buffer.is_floating_point():
                module.register_buffer(name, module.get_buffer(name).to(dtype), persistent=False)

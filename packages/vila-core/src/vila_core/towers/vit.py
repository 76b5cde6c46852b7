"""Parts that vision towers share: attention, MLP, the SigLIP/CLIP layer, and the choice of the hidden state.

N images, P tokens (patches, and prefix tokens if any), D width, H heads, S side of the image in pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from vila_core.config import VisionTowerConfig, ViTConfig
from vila_core.errors import ConfigError, unknown_name


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """Return `x * sigmoid(1.702 x)`, CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """Return the tanh approximation of GELU (SigLIP)."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
}
"""Activations by their names in transformers configs."""


def activation(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the activation called `name`. Raises `ConfigError` for an unknown name."""
    if name not in ACTIVATIONS:
        raise ConfigError(unknown_name("activation", name, ACTIVATIONS))
    return ACTIVATIONS[name]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Full (unmasked) multi-head attention, `softmax(q k^T / sqrt(D / H)) v`: three `[N, P, D]` to `[N, P, D]`."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))  # [N, H, P, D/H]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head self-attention with separate projections, named as in SigLIP and CLIP."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.out_proj(attend(self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden), self.num_heads))


class JointAttention(nn.Module):
    """Multi-head self-attention with one projection for q, k and v, named as in timm and InternViT.

    `q_norm` and `k_norm`, if given, act on the full width, before the heads are split.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        qkv_bias: bool,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=qkv_bias)
        self.q_norm = q_norm
        self.k_norm = k_norm
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(hidden).chunk(3, dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return self.proj(attend(q, k, v, self.num_heads))


class Mlp(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, hidden_size: int, intermediate_size: int, hidden_act: str):
        super().__init__()
        self.activation = activation(hidden_act)
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden)))


class EncoderLayer(nn.Module):
    """The pre-norm transformer layer of SigLIP and CLIP: `[N, P, D]` to `[N, P, D]`."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config.hidden_size, config.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.hidden_size, config.intermediate_size, config.hidden_act)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        return hidden + self.mlp(self.layer_norm2(hidden))


class Encoder(nn.Module):
    """A stack of layers, of which only the first `depth` run."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden: torch.Tensor, depth: int) -> torch.Tensor:
        """Run the first `depth` layers: `[N, P, D]` to hidden state number `depth`, `[N, P, D]`."""
        for index in range(depth):
            hidden = self.layers[index](hidden)
        return hidden


def num_layers_to_run(select_layer: int, num_layers: int) -> int:
    """Return how many layers lead to hidden state `select_layer`: 0 is the embedding, -1 the last layer's output.

    Raises:
        ConfigError: a tower with `num_layers` layers has no such hidden state.
    """
    if not -(num_layers + 1) <= select_layer <= num_layers:
        raise ConfigError(
            f"select_layer is {select_layer}, "
            f"but a tower of {num_layers} layers has hidden states {-num_layers - 1} to {num_layers}."
        )
    return select_layer % (num_layers + 1)


def select_tokens(hidden: torch.Tensor, select_feature: str) -> torch.Tensor:
    """Drop the first token for `patch`, even if it is not a class token (as LLaVA and VILA do); else keep all."""
    return hidden[:, 1:] if select_feature == "patch" else hidden


def check_heads(config: ViTConfig) -> None:
    """Raise `ConfigError` unless the width is a multiple of the number of heads."""
    if config.hidden_size % config.num_attention_heads:
        raise ConfigError(
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {config.num_attention_heads}."
        )


def check_pixels(pixels: torch.Tensor, num_channels: int, image_size: int) -> None:
    """Raise `ConfigError` unless `pixels` are floating-point `[N, num_channels, image_size, image_size]`."""
    if (
        pixels.ndim != 4
        or tuple(pixels.shape[1:]) != (num_channels, image_size, image_size)
        or not pixels.is_floating_point()
    ):
        raise ConfigError(
            f"The vision tower got pixels {list(pixels.shape)} of {pixels.dtype}; it expects floating-point "
            f"[N, {num_channels}, {image_size}, {image_size}]. Preprocess images to the tower's image_size."
        )


class TowerRunner(Protocol):
    """A faster way to run a tower."""

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor | None:
        """`[N, 3, S, S]` -> `[N, P, D]`; None where the tower's own operators are to run."""
        ...

    def encode_bytes(
        self,
        values: Sequence[torch.Tensor],
        pixels: Callable[[torch.Tensor], torch.Tensor],
        after: nn.Module | None,
    ) -> torch.Tensor | None:
        """See `VisionTower.encode_bytes`."""
        ...


class VisionTower(nn.Module, ABC):
    """Base class of vision towers: `forward(pixels [N, 3, S, S]) -> features [N, P, D]` in the weights' dtype.

    A tower has all weights of its checkpoint under the same names, but runs only the first `depth` layers, which
    `select_layer` needs.
    """

    depth: int

    def __init__(self, config: VisionTowerConfig):
        super().__init__()
        self.config = config
        self._runner: TowerRunner | None = None

    def use_runner(self, runner: "TowerRunner | None") -> None:
        """Let `runner` encode images from now on, where it can; None: always `forward`'s own operators."""
        self._runner = runner

    def _run(self, pixels: torch.Tensor) -> torch.Tensor | None:
        """Return the features from the runner; None if there is none, or it does not take these pixels."""
        return None if self._runner is None else self._runner(pixels)

    def encode_bytes(
        self,
        values: Sequence[torch.Tensor],
        pixels: Callable[[torch.Tensor], torch.Tensor],
        after: nn.Module | None,
    ) -> torch.Tensor | None:
        """Encode bytes in the main memory with few launches; None if there is no runner that can.

        Args:
            values: uint8 `[N_i, 3, S, S]`, which are encoded together.
            pixels: makes the tower's input of bytes on its device. The same object each time.
            after: what reads the features. It must launch its kernels without reading a result, and lie on the tower's
                device.

        Returns:
            what `after`, if given, makes of the features `[N, P, D]`.
        """
        return None if self._runner is None else self._runner.encode_bytes(values, pixels, after)

    @abstractmethod
    def forward(self, pixels: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def reset_parameters(self) -> None:
        """Initialize all weights in place, to train from scratch."""

    def adapt_weight(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return `tensor` from a checkpoint adapted to this tower, such as position embeddings of another resolution.

        `name` is the parameter's name in the tower, without a prefix. A tensor that cannot be adapted is returned
        unchanged, and the loader reports it.
        """
        return tensor

    def ignores_weight(self, name: str) -> bool:
        """Return whether to skip the weight `name` of a checkpoint if the tower has no such weight."""
        return False


def init_patch_embedding(conv: nn.Conv2d) -> None:
    """LeCun normal weights (variance 1 / fan-in), zero bias."""
    nn.init.normal_(conv.weight, std=conv.weight[0].numel() ** -0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def init_normal(root: nn.Module, std: float) -> None:
    """Initialize linears and convolutions in `root` with a normal, biases with 0, layer norms with 1 and 0."""
    for module in root.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

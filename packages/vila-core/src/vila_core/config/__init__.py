"""The configuration tree of a model. Every object is frozen and forbids unknown keys.

    base.py            base classes, numbers within limits
    towers.py          vision towers
    rq_siglip.py       VILA-U's tower
    projectors.py      projectors
    encoders.py        media encoders
    language.py        language models
    heads.py           generation heads
    preprocessing.py   images and videos before the tower
    model.py           `VilaConfig`, which holds all of these

Checkpoint formats translate configs on disk into this tree; nothing else reads raw configs.
The config of a component has its registered `name`. A plugin adds its own config type by subclassing
`VisionTowerConfig`, `ProjectorConfig`, `MediaEncoderConfig`, `LanguageModelConfig` or `GenerationHeadConfig`.
"""

from vila_core.config.base import (
    MAX_LISTED,
    Config,
    Deviation,
    Epsilon,
    Frames,
    Heads,
    InnerWidth,
    Layers,
    Listed,
    Mean,
    Pixels,
    Positions,
    RopeFactor,
    Settings,
    Tiles,
    Width,
)
from vila_core.config.encoders import (
    BasicImageEncoderConfig,
    BasicVideoEncoderConfig,
    MediaEncoderConfig,
    TSPVideoEncoderConfig,
)
from vila_core.config.heads import DepthTransformerConfig, GenerationHeadConfig
from vila_core.config.language import DecoderConfig, LanguageModelConfig, RopeScaling, TransformersConfig
from vila_core.config.model import VilaConfig
from vila_core.config.preprocessing import PixelConfig, PreprocessConfig, TimeTokenConfig
from vila_core.config.projectors import FOLDED_PATCHES, PROJECTOR_NAMES, ProjectorConfig
from vila_core.config.rq_siglip import PixelDecoderConfig, RQSiglipConfig
from vila_core.config.towers import (
    ClipConfig,
    InternVitConfig,
    RadioConfig,
    S2Config,
    SiglipConfig,
    TimmConfig,
    VisionTowerConfig,
    ViTConfig,
)

__all__ = [
    "FOLDED_PATCHES",
    "MAX_LISTED",
    "PROJECTOR_NAMES",
    "BasicImageEncoderConfig",
    "BasicVideoEncoderConfig",
    "ClipConfig",
    "Config",
    "DecoderConfig",
    "DepthTransformerConfig",
    "Deviation",
    "Epsilon",
    "Frames",
    "GenerationHeadConfig",
    "Heads",
    "InnerWidth",
    "InternVitConfig",
    "LanguageModelConfig",
    "Layers",
    "Listed",
    "Mean",
    "MediaEncoderConfig",
    "PixelConfig",
    "PixelDecoderConfig",
    "Pixels",
    "Positions",
    "PreprocessConfig",
    "ProjectorConfig",
    "RQSiglipConfig",
    "RadioConfig",
    "RopeFactor",
    "RopeScaling",
    "S2Config",
    "Settings",
    "SiglipConfig",
    "TSPVideoEncoderConfig",
    "Tiles",
    "TimeTokenConfig",
    "TimmConfig",
    "TransformersConfig",
    "ViTConfig",
    "VilaConfig",
    "VisionTowerConfig",
    "Width",
]

"""The configuration of a training run: one frozen tree, written beside the results as YAML.

Recipes are functions that return a `TrainConfig`; `--set a.b=c` changes one value of it.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from vila_core.config import Listed, Settings
from vila_core.file_names import require_file_name
from vila_train.number_types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Ratio, Seed

Part = Literal["vision_tower", "projector", "language_model", "generation_head"]
"""The parts of a model that are tuned or frozen together. Only models that draw have a generation head."""

PARTS: dict[Part, str] = {
    "vision_tower": "vision_tower",
    "projector": "mm_projector",
    "language_model": "llm",
    "generation_head": "generation",
}
"""The attribute of `VilaModel` that holds each part."""


MAX_ROWS = 1 << 20
"""Most rows or samples of an optimizer step, and most lanes: each lane has a state in memory and in each checkpoint."""


MAX_TOKENS = 1 << 22
"""Most tokens of a sample or a row. Choosing samples for a row takes memory for each."""

Name = Annotated[str, Field(min_length=1)]
"""Not empty, as an unset variable of a shell is."""


def _require_folder_name(name: str) -> str:
    return require_file_name(name, "name")


class NewModel(Settings):
    """A model put together from a language model and a vision tower, with a new projector: how NVILA's align starts.

    Attributes:
        language_model: folder or hub id of a Qwen2, Qwen3, Llama or Mistral model, with its tokenizer.
        vision_tower: folder or hub id of a SigLIP, CLIP or InternViT model.
        projector: registered name, as in `mm_projector_type` of VILA's configs.
    """

    language_model: Name
    vision_tower: Name
    projector: Name = "mlp_downsample"


class ModelConfig(Settings):
    """The model that training starts from, and how it sees images.

    Attributes:
        path: checkpoint folder or hub id. None: `new`, or the embedded vila-tiny.
        new: put a new model together instead.
        chat_template: registered name; None: the checkpoint's own.
        projector: replace the projector by one of this type, with new weights unless it is the checkpoint's own.
        image_aspect_ratio: "resize", "pad", "dynamic" or "dynamic_s2"; None: as in the checkpoint.
        s2_scales: sizes of dynamic S2 in pixels, ascending; empty: no dynamic S2; None: as in the checkpoint.
        max_tiles: most tiles of an image; None: as in the checkpoint.
        num_video_frames: frames of a video whose sample names no number; None: as in the checkpoint.
        temporal_pool: pool this many frames into one (LongVILA's TSP encoder); None: as in the checkpoint.
        num_time_tokens: time tokens of the vocabulary, added where they are missing; 0: as in the checkpoint.
        max_length: context of the trained model in tokens; None: as in the checkpoint.
    """

    path: Name | None = None
    new: NewModel | None = None
    chat_template: Name | None = None
    projector: Name | None = None
    image_aspect_ratio: Literal["resize", "pad", "dynamic", "dynamic_s2"] | None = None
    s2_scales: Listed[PositiveInt] | None = None
    max_tiles: PositiveInt | None = None
    num_video_frames: PositiveInt | None = None
    temporal_pool: PositiveInt | None = None
    num_time_tokens: NonNegativeInt = 0
    max_length: PositiveInt | None = None


class DataConfig(Settings):
    """Which samples, in which order, and how they are packed.

    Attributes:
        mixture: datasets by name, such as "coco_captions+my_data*3"; see `vila_train.data.mixture`.
        registries: YAML files that define more datasets.
        max_length: limit on the tokens of a sample, media included.
        too_long: what happens to a longer one: "truncate" drops its last turns, "drop" skips it, "error" stops.
        packing: put several samples into a row. If not, each row is one sample.
        row_length: tokens of a packed row; None: `max_length`.
        samples_per_step: samples of an optimizer step on average: the reference's global batch size.
        rows_per_step: rows of an optimizer step, on all ranks together. None: as many as hold `samples_per_step`,
            measured on the first samples when a run starts, and written down there.
        lanes: independent streams of rows, which are divided among the ranks and their loading processes. The order of
            samples depends on the number of lanes, but not on the number of ranks, which has to divide it and
            `rows_per_step`. None: `rows_per_step`, or a multiple (32 or more) for a large data set.
        lookahead: samples that each lane chooses from to fill a row.
        workers: loading processes per rank; 0 loads in the training process.
        caption_dropout: share of the samples that ask for a picture whose text is left out, so that a model that draws
            also learns to draw without a prompt. Guidance needs that.
    """

    mixture: str
    registries: Listed[Path] = ()
    max_length: Annotated[PositiveInt, Field(le=MAX_TOKENS)] = 4096
    too_long: Literal["truncate", "drop", "error"] = "truncate"
    packing: bool = True
    row_length: Annotated[PositiveInt, Field(le=MAX_TOKENS)] | None = None
    samples_per_step: Annotated[PositiveInt, Field(le=MAX_ROWS)] = 128
    rows_per_step: Annotated[PositiveInt, Field(le=MAX_ROWS)] | None = None
    lanes: Annotated[PositiveInt, Field(le=MAX_ROWS)] | None = None
    lookahead: Annotated[PositiveInt, Field(le=4096)] = 32
    workers: Annotated[NonNegativeInt, Field(le=256)] = 4
    caption_dropout: Ratio = 0.1


class OptimizerConfig(Settings):
    """AdamW with a linear warm-up.

    Attributes:
        learning_rate: of all parts that have no rate of their own.
        part_learning_rates: by part.
        betas, eps, weight_decay: of AdamW; weights with fewer than two dimensions do not decay.
        warmup_ratio: share of the steps.
        schedule: after the warm-up; "cosine" and "linear" end at zero.
        clip_norm: limit on the norm of all gradients; 0: none.
    """

    learning_rate: PositiveFloat
    part_learning_rates: dict[Part, PositiveFloat] = Field(default_factory=dict)
    betas: tuple[Ratio, Ratio] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    warmup_ratio: Ratio = 0.03
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    clip_norm: NonNegativeFloat = 1.0


class AdapterConfig(Settings):
    """Train small additions instead of all weights (with peft). The defaults are those of VILA's LoRA scripts.

    Attributes:
        method: "lora", "dora", "qlora" (LoRA on 4-bit NF4 weights) or "norms" (only the normalization layers).
        parts: what gets adapters. Other tuned parts are trained in full.
        rank, alpha, dropout: of LoRA.
        targets: names of linear layers; empty: all of a part.
    """

    method: Literal["lora", "dora", "qlora", "norms"] = "lora"
    parts: Annotated[Listed[Literal["vision_tower", "language_model"]], Field(min_length=1)] = ("language_model",)
    rank: Annotated[PositiveInt, Field(le=65_536)] = 64
    alpha: PositiveFloat = 16.0
    dropout: Ratio = 0.05
    targets: Listed[str] = ()


class ComputeConfig(Settings):
    """How a step is computed.

    Attributes:
        precision: "bf16" computes in bfloat16 on fp32 master weights; "fp32" in fp32.
        activation_checkpointing: "none"; "full" recomputes each layer; "linears" keeps only attention.
        compile: fuse what lies between the products of a decoder's layers: with kernels of our own under LoRA without
            dropout, otherwise with `torch.compile`.
        sharded: divide the weights even on one GPU (FSDP). None: only where there are several, or where more than a
            quarter of the weights is trained in bf16.
        keep_gathered: keep the gathered weights of all layers from the first row of a step to its last, so that they
            are exchanged once a step. Takes 2 bytes for each weight on every GPU.
        fp8: linear layers of the language model in 8 bits (E4M3 forward, E5M2 gradients). Frozen weights that are not
            sharded are quantized once, by rows and by columns, which takes the memory of bf16; the weights themselves
            lie in main memory meanwhile.
        ring, ulysses: ranks that share a sequence. Only 1 yet; the other ranks of the mesh are data-parallel ("dp").
    """

    precision: Literal["bf16", "fp32"] = "bf16"
    activation_checkpointing: Literal["none", "full", "linears"] = "full"
    compile: bool = False
    sharded: bool | None = None
    keep_gathered: bool = False
    fp8: bool = False
    ring: Literal[1] = 1
    ulysses: Literal[1] = 1


class SavingConfig(Settings):
    """Checkpoints to resume from.

    Attributes:
        every: steps between them; None: only at the end.
        keep: how many of the newest are kept.
    """

    every: PositiveInt | None = 200
    keep: PositiveInt = 2


class LoggingConfig(Settings):
    """What is reported.

    Attributes:
        every: steps between records.
        callbacks: registered names, such as "tensorboard", "wandb" or "trackio".
    """

    every: PositiveInt = 1
    callbacks: Listed[str] = ("tensorboard",)


class EvaluationConfig(Settings):
    """Evaluation inside the loop, by the network that is being trained.

    Attributes:
        tasks: registered evaluation tasks, such as "pope"; empty: none. vila-eval brings them.
        mixture: datasets on which to compute the loss; None: none. Their first samples are always the same ones.
        every: steps between evaluations; None: only after the last step.
        limit: rows of each task, and samples of `mixture`; None: all.
        data: folder with copies of the tasks' hub repositories, as `vila-eval --data`.
        cache: folder for downloads of tasks.
        offline: download nothing.
    """

    tasks: Listed[str] = ()
    mixture: str | None = None
    every: PositiveInt | None = None
    limit: PositiveInt | None = None
    data: Path | None = None
    cache: Path = Path("~/.cache/vila-eval")
    offline: bool = False


class TrainConfig(Settings):
    """One stage of training.

    Attributes:
        name: of the stage, and of the run's folder in `runs` if there is no --out.
        tune: the parts that are trained; the others are frozen.
        epochs: passes over the mixture.
        max_steps: stop after this many optimizer steps, whatever `epochs` says.
        seed: of the order of samples, of new weights and of dropout.
        soft_time_tokens: standard deviation of the targets of time tokens (LITA), in tokens; None: hard targets.
    """

    name: Annotated[Name, AfterValidator(_require_folder_name)]
    model: ModelConfig = ModelConfig()
    tune: Listed[Part]
    data: DataConfig
    optimizer: OptimizerConfig
    adapter: AdapterConfig | None = None
    compute: ComputeConfig = ComputeConfig()
    saving: SavingConfig = SavingConfig()
    logging: LoggingConfig = LoggingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    epochs: PositiveFloat = 1.0
    max_steps: PositiveInt | None = None
    seed: Seed = 0
    soft_time_tokens: PositiveFloat | None = None

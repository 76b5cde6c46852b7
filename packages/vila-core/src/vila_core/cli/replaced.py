"""`vila-run` and `vila-upload`: programs of the original VILA that say what to use instead."""

import sys
from typing import NoReturn

INSTEAD = {
    "run": "VILA's launcher for Slurm has no replacement here. Start a program on several GPUs with torchrun or srun.",
    "upload": "To publish a checkpoint, use the hub's own program: hf upload OWNER/NAME FOLDER",
    **dict.fromkeys(("ask", "generate", "predict", "inference"), "To ask a model, use: vila infer"),
    **dict.fromkeys(("quantize", "awq"), "To quantize a model, use: vila quant awq MODEL OUT"),
    **dict.fromkeys(("evaluate", "benchmark", "bench"), "To evaluate a model, use: vila eval"),
    **dict.fromkeys(("finetune", "sft"), "To fine-tune a model, use: vila train sft --model MODEL --data my.jsonl"),
    **dict.fromkeys(("pretrain", "align"), "To run a stage of training, use: vila train run. Stages: vila train list"),
    **dict.fromkeys(("download", "pull"), "Models are downloaded when first used, or with: hf download OWNER/NAME"),
    **dict.fromkeys(("list", "ls"), "To list plugins, use: vila plugins. Downloaded models: hf cache ls"),
    "version": "To print the version, use: vila --version",
    **{
        name: f"It needs the distribution vila-{name}: python -m pip install -e packages/vila-{name} in a clone."
        for name in ("eval", "quant", "serve", "train")
    },
}
"""Subcommands that do not exist -> what to use instead."""


def run() -> NoReturn:
    """Say what replaces `vila-run`."""
    _explain("run")


def upload() -> NoReturn:
    """Say what replaces `vila-upload`."""
    _explain("upload")


def _explain(name: str) -> NoReturn:
    message = f"vila-{name}: {INSTEAD[name]}"
    if "--help" in sys.argv:
        print(message)
        sys.exit(0)
    print(message, file=sys.stderr)
    sys.exit(2)

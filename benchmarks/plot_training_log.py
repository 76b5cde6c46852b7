"""Draw the loss and the validation accuracies of a training log (needs matplotlib).

python benchmarks/plot_training_log.py docs/assets/vila-tiny-log.jsonl docs/assets/vila-tiny-loss.png
"""

import argparse
import json
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    records = [json.loads(line) for line in arguments.log.read_text(encoding="utf-8").splitlines()]
    losses = [record for record in records if "loss" in record]
    tests = [record for record in records if record.get("stage") == "sft" and "validation" in record]
    mpl.use("Agg")
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    for stage in dict.fromkeys(record["stage"] for record in losses):
        of_stage = [record for record in losses if record["stage"] == stage]
        left.plot(
            [record["elapsed"] for record in of_stage],
            [max(record["loss"], 1e-5) for record in of_stage],
            label=stage,
            linewidth=1,
        )
    left.set(
        yscale="log",
        xlabel="seconds since the command began",
        ylabel="loss (mean over answer tokens)",
        title="Training loss",
    )
    left.legend()
    right.set_prop_cycle(color=mpl.colormaps["tab20"].colors[::2] + mpl.colormaps["tab20"].colors[1::2])
    for task in tests[0]["validation"] if tests else ():
        right.plot([t["step"] for t in tests], [100 * t["validation"][task] for t in tests], label=task, linewidth=1)
    right.set(
        xlabel="SFT step", ylabel="exact match, %", title="Validation: combinations never trained on", ylim=(50, 101)
    )
    right.legend(fontsize=7, ncols=2, loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(arguments.picture, dpi=110)


if __name__ == "__main__":
    main()

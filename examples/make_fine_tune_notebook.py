"""Writes `fine_tune.ipynb`, with its outputs: `python examples/make_fine_tune_notebook.py`. See `make_notebook.py`."""

from pathlib import Path

import nbformat
from make_notebook import build, execute

NOTEBOOK = Path(__file__).with_name("fine_tune.ipynb")

CELLS: tuple[tuple[str, str], ...] = (
    (
        "markdown",
        "# Fine-tune on your own images\n\n"
        "`vila-tiny`, the embedded demo model, learns a new task in a few minutes on a CPU: each shape of toy has its "
        "basket, whatever its color. A released model is fine-tuned the same way on a GPU: see "
        "[the docs](../docs/fine-tune.md).",
    ),
    (
        "code",
        "import json\nimport random\nfrom pathlib import Path\nfrom tempfile import mkdtemp\n\n"
        "from PIL import Image, ImageDraw\n\nimport vila_core as vila",
    ),
    ("markdown", "## Data\n\nPictures, and LLaVA's format: one question and its answer per line."),
    (
        "code",
        'BASKETS = {"circle": "red", "triangle": "blue", "square": "green"}\n'
        'CORNERS = {"circle": 40, "triangle": 3, "square": 4}\n\n\n'
        "def draw_toy(shape, seed):\n"
        '    """Return a picture of a toy of any color, size and place."""\n'
        "    chance = random.Random(seed)\n"
        '    picture = Image.new("RGB", (128, 128), "white")\n'
        "    x, y, size = chance.randint(40, 88), chance.randint(40, 88), chance.randint(20, 36)\n"
        '    color = chance.choice(["red", "blue", "green", "orange", "purple"])\n'
        "    ImageDraw.Draw(picture).regular_polygon((x, y, size), CORNERS[shape], fill=color)\n"
        "    return picture\n\n\n"
        "folder = Path(mkdtemp())\n"
        'with open(folder / "toys.jsonl", "w") as file:\n'
        "    for seed in range(36):\n"
        "        shape = list(BASKETS)[seed % 3]\n"
        '        draw_toy(shape, seed).save(folder / f"{seed}.png")\n'
        '        turns = [{"from": "human", "value": "<image>\\nWhich basket?"}, '
        '{"from": "gpt", "value": BASKETS[shape]}]\n'
        '        file.write(json.dumps({"image": f"{seed}.png", "conversations": turns}) + "\\n")\n\n'
        'draw_toy("triangle", 1)',
    ),
    ("markdown", "## Before\n\nNew pictures, which are not in the data."),
    (
        "code",
        "new_toys = [(shape, draw_toy(shape, 1000 + seed)) for seed in range(4) for shape in BASKETS]\n\n\n"
        "def count_right(model):\n"
        '    """Print how many of the new toys get into their baskets."""\n'
        '    prompts = [[picture, "Which basket?"] for _, picture in new_toys]\n'
        "    answers = model.generate_batch(prompts, max_new_tokens=8)\n"
        "    right = sum(answer == BASKETS[shape] for answer, (shape, _) in zip(answers, new_toys, strict=True))\n"
        '    print(f"{right} of {len(new_toys)} right: {answers}")\n\n\n'
        'count_right(vila.load("vila-tiny", device="cpu"))',
    ),
    (
        "markdown",
        "## Train\n\n"
        "What `vila-train sft` does, in Python. `change` takes what `--set` takes on the command line. Progress goes "
        "to standard error, which this notebook does not keep.",
    ),
    (
        "code",
        "%%capture\n"
        "from vila_train.loop import train\n"
        "from vila_train.recipes.sft import fine_tuning\n"
        "from vila_train.settings import change\n\n"
        "config = change(\n"
        '    fine_tuning("vila-tiny", str(folder / "toys.jsonl"), learning_rate=5e-4),\n'
        "    [\n"
        '        "epochs=2",\n'
        '        "data.samples_per_step=6",  # many small steps\n'
        '        "data.max_length=450",  # of a row, into which samples are packed\n'
        '        "data.workers=0",\n'
        '        "compute.precision=fp32",  # faster on a CPU\n'
        '        "tune=projector,language_model",\n'
        '        "logging.callbacks=[]",\n'
        "    ],\n"
        ")\n"
        'trained = train(config, folder / "run", device="cpu")',
    ),
    ("markdown", "The run's folder holds the log, the checkpoints, the trained model, and a plot of the loss:"),
    ("code", 'from IPython.display import SVG\n\nSVG(filename=folder / "run" / "loss.svg")'),
    ("markdown", "## After"),
    ("code", 'count_right(vila.load(trained, device="cpu"))'),
    (
        "markdown",
        "`trained` is a checkpoint like any other: `vila-infer`, `vila-serve`, `vila-quant` and `vila-eval` take it.",
    ),
)


if __name__ == "__main__":
    nbformat.write(execute(build(CELLS)), NOTEBOOK)
    print(f"Wrote {NOTEBOOK} ({NOTEBOOK.stat().st_size / 1e3:.0f} kB).")

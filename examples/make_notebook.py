"""Writes `notebook.ipynb`, with its outputs: `python examples/make_notebook.py`. Needs nbclient and ipykernel."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("notebook.ipynb")

CELLS: tuple[tuple[str, str], ...] = (
    (
        "markdown",
        "# VILA Kit in a notebook\n\n"
        "This notebook uses `vila-tiny`, the embedded demo model: no network, no GPU. It is a real NVILA-architecture "
        "model, but it only knows drawn shapes. For photos, load a released one, such as "
        '`vila.load("Efficient-Large-Model/NVILA-8B")`: every cell below works with it.',
    ),
    ("markdown", "## Load a model"),
    (
        "code",
        'from pathlib import Path\n\nimport vila_core as vila\n\nmodel = vila.load("vila-tiny")\nmodel',
    ),
    ("markdown", "## Ask about an image\n\nImages and videos show themselves. A prompt is a list of media and texts."),
    ("code", 'media = Path("media")\nscene = vila.Image(media / "scene.png")\nscene'),
    ("code", 'model.generate([scene, "What is in the picture?"])'),
    ("markdown", "Paths, PIL images and arrays work too. `complete` returns more than the text:"),
    ("code", 'model.complete([media / "chart.png", "What color is the highest bar?"])'),
    ("markdown", "## Ask about a video"),
    ("code", 'video = vila.Video(media / "motion.mp4")\nvideo'),
    ("code", 'model.generate([video, "Which way does the yellow moon move?"])'),
    ("markdown", "## Stream an answer"),
    (
        "code",
        'for piece in model.stream([scene, "What is in the picture?"]):\n    print(piece, end="|", flush=True)',
    ),
    (
        "markdown",
        "## Continue a conversation\n\nMessages are `vila.Message`s, or dicts as in OpenAI's and transformers' chats.",
    ),
    (
        "code",
        "conversation = [\n"
        "    {\n"
        '        "role": "user",\n'
        '        "content": [\n'
        '            {"type": "image", "path": "media/pair-1.png"},\n'
        '            {"type": "image", "path": "media/pair-2.png"},\n'
        '            {"type": "text", "text": "Which picture has more objects?"},\n'
        "        ],\n"
        "    },\n"
        "]\n"
        "model.chat(conversation)",
    ),
    (
        "markdown",
        "## Get JSON that follows a schema\n\n"
        "The form is always right. What it says is up to the model, and `vila-tiny` has never seen JSON.",
    ),
    (
        "code",
        "schema = {\n"
        '    "type": "object",\n'
        '    "properties": {"color": {"enum": ["red", "yellow", "purple", "green"]}},\n'
        '    "required": ["color"],\n'
        "}\n"
        'model.generate([scene, "What color is the moon?"], json_schema=schema)',
    ),
    ("markdown", "## Ask many questions at once\n\nEach answer is what `generate` would give."),
    (
        "code",
        'questions = ["What is in the picture?", "How many objects are there?", "What color is the moon?"]\n'
        "answers = model.generate_batch([[scene, question] for question in questions])\n"
        "dict(zip(questions, answers, strict=True))",
    ),
    (
        "markdown",
        "## See what the model sees\n\n"
        "`inspect` returns every step between the prompt and the scores of the next token. In a notebook it shows the "
        "tokens of each part, the tiles that the vision tower gets, and the prompt.",
    ),
    ("code", 'seen = model.inspect([scene, video, "What is in the picture?"])\nseen'),
    ("code", "seen.inputs_embeds.shape, seen.logits.shape"),
    ("markdown", "## Mistakes\n\nErrors that you can fix are one sentence:"),
    ("raises", 'model.generate([vila.Image("missing.png"), "What is in the picture?"])'),
    ("raises", 'model.generate([scene, "What is in the picture?"], do_sample=True)'),
)


def build(contents: Sequence[tuple[str, str]] = CELLS) -> Any:
    """Return a notebook without outputs. Cells are (kind, source); "raises" is code that raises."""
    cells: list[Any] = []
    for number, (kind, source) in enumerate(contents):
        if kind == "markdown":
            cell = nbformat.v4.new_markdown_cell(source)
        else:
            tags = {"tags": ["raises-exception"]} if kind == "raises" else {}
            cell = nbformat.v4.new_code_cell(source, metadata=tags)
        cell["id"] = f"cell-{number:02}"  # the same at every run
        cells.append(cell)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=kernel)


def execute(notebook: Any) -> Any:
    """Run a notebook in the folder of the examples and return it with its outputs."""
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    settings = {"timeout": 600, "kernel_name": "python3", "record_timing": False, "coalesce_streams": True}
    NotebookClient(notebook, resources=folder, **settings).execute()
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec}
    return notebook


if __name__ == "__main__":
    nbformat.write(execute(build()), NOTEBOOK)
    print(f"Wrote {NOTEBOOK} ({NOTEBOOK.stat().st_size / 1e3:.0f} kB).")

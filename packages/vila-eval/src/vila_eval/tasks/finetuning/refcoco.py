"""RefCOCO, RefCOCO+ (Yu et al. 2016, arXiv:1608.00272) and RefCOCOg (Mao et al. 2016, arXiv:1511.02283): grounding.

There is one question per phrase, worded as in VILA's `llava/eval/refcoco.py`. VILA's single entry `refcoco` runs all
eight splits; so does `--tasks refcoco` here, by the tag. Boxes are read in VILA's default format (digits, on the image
padded to a square); a model that writes another format needs its own `BoxAccuracyMetric`.

The val splits on the hub are larger than the usual ones: RefCOCO's has 8811 objects and RefCOCOg's 7573, which are the
3811 (of UNC) and 2573 (of UMD) that papers report, together with Google's 5000. testA, testB and test are the usual
ones.
"""

from collections.abc import Sequence

from vila_core.errors import MediaError
from vila_core.media import Image
from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.refcoco import refcoco, refcocog
from vila_eval.metrics.boxes import BOX_ACCURACY
from vila_eval.task import Question, Row, Task

COLUMNS = {
    "image": "image",
    "answer": "list of strings: phrases for one object",
    "bbox": "list of floats: x, y, width, height in pixels",
    "file_name": "string: COCO file, with the annotation's number",
}
"""Source: the dataset cards of lmms-lab/RefCOCO, lmms-lab/RefCOCOplus and lmms-lab/RefCOCOg."""


def ask(row: Row) -> Sequence[Question]:
    """Ask for the box of every phrase of the row."""
    width, height = _size(row["image"])
    x, y, box_width, box_height = row["bbox"]
    return [
        Question(
            id="",
            prompt=[
                row["image"],
                f"Please provide the bounding box coordinate of the region this sentence describes: {phrase}.",
            ],
            answer=[x, y, x + box_width, y + box_height],
            cluster="_".join(row["file_name"].partition(".")[0].split("_")[:3]),  # COCO_train2014_000000581857_16.jpg
            fields={"width": width, "height": height},
        )
        for phrase in row["answer"]
    ]


def _size(image: Image) -> tuple[int, int] | tuple[None, None]:
    """Return the image's width and height, or None for both if it cannot be read; asking reports that error."""
    try:
        return image.load().size
    except MediaError:
        return None, None


def _task(name: str, repository: str, split: str) -> Task:
    return Task(
        f"{name}_{split}",
        HubDataset(f"lmms-lab/{repository}", split, COLUMNS, fixture=refcocog if name == "refcocog" else refcoco),
        ask,
        BOX_ACCURACY,
        tags=("finetuning", "refcoco-train", *dict.fromkeys(("refcoco", name))),
        max_new_tokens=64,
        description="The box of the object that a phrase describes.",
        url="https://github.com/lichengunc/refer",
    )


REFCOCO_TASKS = (
    *(_task("refcoco", "RefCOCO", split) for split in ("val", "testA", "testB")),
    *(_task("refcoco+", "RefCOCOplus", split) for split in ("val", "testA", "testB")),
    *(_task("refcocog", "RefCOCOg", split) for split in ("val", "test")),
)

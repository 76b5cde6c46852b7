"""WidgetCap: describe an element of a mobile app. Li et al. 2020, arXiv:2010.04295.

VILA's question file is not public. Here the question names the element by its box, in fractions of the image.
"""

from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.widgetcap import widgetcap
from vila_eval.metrics.raw_captions import RawCaptionMetric
from vila_eval.task import Question, Row, Task


def ask(row: Row) -> Question:
    """Ask for a phrase for the element in the box. Elements of one screen share a cluster."""
    box = ", ".join(f"{number:.3f}" for number in row["bbox"])
    return Question(
        id="",
        prompt=[
            row["image"],
            f"Describe the function of the user interface element in the box [{box}] in a short phrase.",
        ],
        answer=list(row["captions"]),
        cluster=str(row["screenId"]),
    )


WIDGETCAP = Task(
    "widgetcap",
    HubDataset(
        "rootsautomation/RICO-WidgetCaptioning",
        "test",
        {
            "screenId": "int64",
            "captions": "list of strings: phrases for the element",
            "bbox": "list of floats: left, top, right, bottom in fractions of the image",
            "image": "image: the screen",
        },
        fixture=widgetcap,
    ),
    ask,
    RawCaptionMetric("widgetcap", ("cider",)),
    tags=("finetuning", "widgetcap"),
    max_new_tokens=32,
    description="A phrase for an element of a mobile app.",
    url="https://arxiv.org/abs/2010.04295",
)

"""How a registry describes a dataset."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from vila_core.config import Config
from vila_train.data.placement import Placement

Format = Literal["llava", "chat", "qa", "texts", "mmc4", "webdataset", "m3it", "flan", "video"]
"""How the records of a dataset are to be understood; see `vila_train.data.formats`."""


Learned = Literal["answer", "document", "picture"]
"""What is learned from a picture and its caption."""


def _as_list(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Paths = Annotated[tuple[str, ...], BeforeValidator(_as_list), Field(min_length=1)]
"""One path or a list of them."""


class DatasetEntry(Config):
    """One dataset. Paths are relative to the registry's file.

    Attributes:
        path: file or folder with the samples, or a list of them; `*` and `?` in names match several.
        format: of the records; None: found out by content.
        media: folder that the names of images and videos are relative to; None: the folder of the data file.
        media_suffix: added to names of media that have none, such as ".mp4".
        placement: where media go among the texts of LLaVA's conversations; see `vila_train.data.placement`.
        max_images: of an MMC4 document; the reference keeps 6.
        choose_images: which images of a longer MMC4 document: the first, as the reference, or the most similar to
            their sentences.
        learn: what is learned from captions in webdataset: the caption as the "answer" to its image, or as a "document"
            without a chat template, or the "picture", which a model that draws draws from its caption.
        split: of tables that have several.
        columns: names of a table's columns in other datasets, by the names that the format expects.
        subsets: files that `vila-train prune` wrote, by the names that stand after the `@` in a mixture.
        samples: how many there should be; `vila-train data check` compares.
        source: where it comes from.
        license: its license.
    """

    path: Paths
    format: Format | None = None
    media: str | None = None
    media_suffix: str = ""
    placement: Placement = "auto"
    max_images: PositiveInt = 6
    choose_images: Literal["first", "similarity"] = "first"
    learn: Learned = "answer"
    split: str = "train"
    columns: dict[str, str] = Field(default_factory=dict)
    subsets: dict[str, str] = Field(default_factory=dict)
    samples: PositiveInt | None = None
    source: str = ""
    license: str = ""


class RegistryFile(Config):
    """A registry in YAML.

    Attributes:
        datasets: by name.
        mixtures: names for combinations, such as `my_sft: [my_captions*2, coco_captions]`.
    """

    datasets: dict[str, DatasetEntry] = Field(default_factory=dict)
    mixtures: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(default_factory=dict)

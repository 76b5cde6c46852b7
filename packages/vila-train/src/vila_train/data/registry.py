"""The registry: which datasets and mixtures a name can mean.

datasets:
  my_captions:
    path: captions/train.jsonl     # relative to this file
    media: captions/images
mixtures:
  my_sft: [my_captions*2, other_set]
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from pydantic import ValidationError

from vila_core.errors import first_problem, listed, shown, unknown_name
from vila_core.plugins.loader import load_plugins
from vila_train.data.conversations import ConversationSource
from vila_train.data.entries import DatasetEntry, RegistryFile
from vila_train.data.names import MAX_ITEMS, Item, is_path, parse_mixture
from vila_train.data.opening import open_dataset
from vila_train.data.public_sets import public_sets
from vila_train.data.sources import RegisteredSource, Subset
from vila_train.data.subsets import read_subset
from vila_train.errors import DatasetError
from vila_train.yaml_files import read_yaml

_IN_NAMES = "+*@"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Named:
    """A dataset of a registry, and the folder that its paths are relative to."""

    entry: DatasetEntry
    base: Path


@dataclass(frozen=True)
class Registry:
    """Datasets and mixtures by name.

    Attributes:
        datasets: of the registry files.
        mixtures: names for combinations of them.
    """

    datasets: Mapping[str, Named]
    mixtures: Mapping[str, Sequence[str]]

    def resolve(self, mixture: str) -> list[Item]:
        """Return the items of a mixture, with the names of other mixtures replaced by what they hold.

        Raises:
            DatasetError: the text cannot be read, or a mixture holds itself.
        """
        items = list(islice(self._expand(parse_mixture(mixture), ()), MAX_ITEMS + 1))
        if len(items) > MAX_ITEMS:
            raise DatasetError(f"The mixture {shown(mixture)} stands for more than {MAX_ITEMS:,} datasets.")
        return items

    def _expand(self, items: Sequence[Item], within: tuple[str, ...]) -> Iterator[Item]:
        for item in items:
            if item.name not in self.mixtures:
                yield item
                continue
            if item.name in within:
                raise DatasetError(f"The mixture '{item.name}' holds itself: {' -> '.join((*within, item.name))}.")
            if item.subset is not None:
                raise DatasetError(f"'{item.name}' is a mixture; '@{item.subset}' can stand after a dataset only.")
            inner = [one for text in self.mixtures[item.name] for one in parse_mixture(text)]
            for one in self._expand(inner, (*within, item.name)):
                yield replace(one, weight=one.weight * item.weight)

    def open(self, item: Item) -> ConversationSource:
        """Return the conversations of an item that is no mixture. A name has precedence over a file of that name.

        Raises:
            DatasetError: the name is unknown, or its files are missing or damaged.
            ConfigError: a registered dataset has no such subset.
        """
        if item.name in self.datasets:
            named = self.datasets[item.name]
            try:
                return self._part(open_dataset(item.name, named.entry, named.base), item, named)
            except DatasetError as error:
                if f"'{item.name}'" in str(error):
                    raise
                raise DatasetError(f"Dataset '{item.name}': {error}") from None
        if item.name in load_plugins().datasets:
            return RegisteredSource(item.name, () if item.subset is None else (item.subset,))
        if is_path(item.name):
            path = Path(item.name).expanduser()
            entry = DatasetEntry(path=(str(path),))
            return self._part(open_dataset(item.name, entry, Path()), item, Named(entry, Path()))
        raise DatasetError(self._unknown(item.name))

    def _part(self, source: ConversationSource, item: Item, named: Named) -> ConversationSource:
        if item.subset is None:
            return source
        if item.subset in named.entry.subsets:
            file = named.base / named.entry.subsets[item.subset]
        elif is_path(item.subset):
            file = Path(item.subset).expanduser()
        else:
            known = listed(named.entry.subsets, 10) or "none"
            raise DatasetError(
                f"'{item.name}' has no subset {shown(item.subset)}, and there is no such file. Known: {known}."
            )
        return Subset(source, read_subset(file, len(source)))

    def names(self) -> list[str]:
        """Return every name that can stand in a mixture."""
        return sorted({*self.datasets, *self.mixtures, *load_plugins().datasets.names()})

    def _unknown(self, name: str) -> str:
        if name in public_sets():
            return (
                f"'{name}' is a public data set. Download a copy, run vila-train data prepare {name} FOLDER, and pass "
                "--registry with the file that it writes (data.registries)."
            )
        nearest = difflib.get_close_matches(name, public_sets(), n=1)
        hint = (
            f"Did you mean the public data set '{nearest[0]}'?"
            if nearest
            else f"A dataset of the Hugging Face hub is downloaded first: "
            f"hf download {name} --repo-type dataset --local-dir FOLDER."
            if _HUB_ID.fullmatch(name)
            else "Datasets of your own are defined in a YAML file (--registry)."
        )
        return f"{unknown_name('dataset', name, self.names())} There is no such file either. {hint}"


def open_registry(files: Sequence[Path]) -> Registry:
    """Return the datasets and mixtures of registry files. A name may stand in one of them only.

    Raises:
        DatasetError: a file is missing or damaged, or two define the same name.
    """
    datasets: dict[str, Named] = {}
    mixtures: dict[str, Sequence[str]] = {}
    owners: dict[str, Path] = {}
    for file in files:
        content = read_registry(file)
        for name in (*content.datasets, *content.mixtures):
            if name in owners:
                raise DatasetError(f"'{owners[name]}' and '{file}' both define '{name}'. Rename one.")
            owners[name] = file
        base = file.expanduser().parent
        datasets.update({name: Named(entry, base) for name, entry in content.datasets.items()})
        mixtures.update(content.mixtures)
    return Registry(datasets, mixtures)


def read_registry(file: Path) -> RegistryFile:
    """Return the content of a registry file. Raises `DatasetError` if it is missing or damaged."""
    values = read_yaml(file.expanduser(), DatasetError)
    try:
        content = RegistryFile.model_validate(values)
    except ValidationError as error:
        raise DatasetError(f"'{file}': {first_problem(error).with_value}.") from None
    for name in (*content.datasets, *content.mixtures):
        if not name.strip() or any(mark in name for mark in _IN_NAMES) or "\0" in name:
            raise DatasetError(f"'{file}': the name {shown(name)} is empty or has one of {' '.join(_IN_NAMES)}.")
    both = content.datasets.keys() & content.mixtures.keys()
    if both:
        raise DatasetError(f"'{file}': '{min(both)}' is both a dataset and a mixture. Rename one.")
    return content

"""Reading YAML that people write: plain values only, each key once, no aliases."""

from pathlib import Path
from typing import Any, cast

from vila_core.errors import VilaError, shown
from vila_core.input_files import read_input_text
from vila_train.errors import TrainingError

MAX_YAML_BYTES = 4 * 1024 * 1024


def read_yaml(path: Path, error: type[VilaError] = TrainingError) -> dict[str, object]:
    """Return the mapping in the YAML file at `path`.

    Raises:
        VilaError: `error`, if the file is missing, not YAML, not a mapping, names a key twice, or has an alias (a few
            lines of aliases can stand for billions of values).
    """
    text = read_input_text(path, max_bytes=MAX_YAML_BYTES, error=error, advice="Expected a YAML file.")
    return parse_yaml(text, f"'{path}'", error)


def parse_yaml(text: str, source: str, error: type[VilaError] = TrainingError) -> dict[str, object]:
    """Return the mapping in `text`; errors name it `source`. Raises as `read_yaml` does."""
    import yaml

    try:
        value: object = yaml.load(text, Loader=_strict_loader())  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as problem:
        raise error(f"{source} is not valid YAML: {_describe(problem)}") from None
    except (RecursionError, ValueError) as problem:  # deep nesting; dates such as 2024-13-01
        reason = "it nests too deeply" if isinstance(problem, RecursionError) else str(problem)
        raise error(f"{source} is not valid YAML: {reason}.") from None
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise error(f"{source} holds {shown(value)}; expected a mapping such as 'key: value'.")
    values = cast("dict[object, object]", value)
    if (wrong := next((key for key in values if not isinstance(key, str)), None)) is not None:
        raise error(f"{source}: the key {shown(wrong)} is not a text. Put it in quotes.")
    return cast("dict[str, object]", values)


def _describe(problem: Exception) -> str:
    mark = getattr(problem, "problem_mark", None)
    where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
    return f"{getattr(problem, 'problem', None) or problem}{where}."


def _strict_loader() -> type[Any]:
    import yaml
    from yaml.composer import ComposerError
    from yaml.constructor import ConstructorError

    class StrictLoader(yaml.SafeLoader):
        """Refuses aliases and repeated keys."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event = self.peek_event()
                raise ComposerError(
                    None, None, f"the alias '*{event.anchor}' is not supported; write the value out", event.start_mark
                )
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[object] = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if isinstance(key, str | int | float | bool | None):
                    if key in seen:
                        raise ConstructorError(None, None, f"the key {shown(key)} stands twice", key_node.start_mark)
                    seen.add(key)
            return super().construct_mapping(node, deep)

    return StrictLoader

"""Renders the chat template of a checkpoint. Whatever the template does, the outcome is a text or a `PromptError`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import Template
from jinja2.exceptions import SecurityError, TemplateError, UndefinedError

from vila_core.errors import CheckpointError, PromptError
from vila_core.templating.budget import Budget, TemplateLimitError, spending
from vila_core.templating.environment import BoundedEnvironment

MAX_SOURCE = 200_000
"""Limit on the characters of a template; the largest released ones have 20,000."""
MAX_REASON = 300
"""Limit on the characters of a template's own error message."""


def render_chat(
    name: str,
    source: str,
    messages: Sequence[Mapping[str, Any]],
    special_tokens: Mapping[str, str],
    *,
    generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Render `source` with the variables that transformers gives a chat template. `tools` are JSON values.

    Raises:
        CheckpointError: the template is not valid Jinja.
        PromptError: the template rejects the conversation, fails, or exceeds its limits.
    """
    template = compile_template(name, source)
    variables = {
        **special_tokens,
        "messages": messages,
        "tools": [*tools] or None,
        "documents": None,
        "add_generation_prompt": generation_prompt,
    }
    others = [message["tool_calls"] for message in messages if "tool_calls" in message]
    num_characters = len(source) + sum(len(message["content"]) for message in messages)
    num_characters += len(json.dumps([*tools, *others], ensure_ascii=False)) if tools or others else 0
    try:
        with spending(Budget(len(messages) + len(tools), num_characters)):
            return template.render(variables)
    except TemplateLimitError as error:
        raise PromptError(f"Chat template '{name}' is refused: {_reason(error)}") from None
    except (RecursionError, MemoryError):
        raise PromptError(f"Chat template '{name}' is refused: it recurses too deeply.") from None
    except TemplateError as error:
        verb = "fails on" if isinstance(error, SecurityError | UndefinedError) else "rejects"
        raise PromptError(f"Chat template '{name}' {verb} this conversation: {_reason(error)}") from None
    except Exception as error:  # noqa: BLE001 - a template may fail like any program
        raise PromptError(
            f"Chat template '{name}' fails on this conversation: {type(error).__name__}: {_reason(error)}"
        ) from None


def _reason(error: Exception) -> str:
    text = str(error).strip().rstrip(".") or "it gives no reason"
    return f"{text[:MAX_REASON]}…" if len(text) > MAX_REASON else f"{text}."


@lru_cache(maxsize=16)
def compile_template(name: str, source: str) -> Template:
    """Return the compiled template. Raises `CheckpointError` if it is too long or not valid Jinja."""
    if len(source) > MAX_SOURCE:
        raise CheckpointError(
            f"Chat template '{name}' has {len(source):,} characters, more than any real one (limit {MAX_SOURCE:,})."
        )
    try:
        return BoundedEnvironment().from_string(source)
    except (RecursionError, MemoryError):
        raise CheckpointError(f"Chat template '{name}' nests too deeply.") from None
    except Exception as error:  # noqa: BLE001 - Python's compiler has limits of its own
        raise CheckpointError(f"Chat template '{name}' is not valid Jinja: {_reason(error)}") from None

"""Prompts for pictures: a question of the user, and the start token where the answer begins."""

from collections.abc import Mapping, Sequence

from vila_core.chat import ChatTemplate, Turn
from vila_core.errors import CheckpointError, PromptError, shown
from vila_core.generation.heads import GenerationHead, check_kind
from vila_core.prompt import require_possible_length, without_media_tokens
from vila_core.tokenizer import Tokenizer


class PicturePrompts:
    """Renders and tokenizes prompts for the pictures of a model.

    Args:
        head: draws.
        template: of the model's conversations.
        tokenizer: of the model.
        context: of the model, in tokens.
    """

    def __init__(self, head: GenerationHead, template: ChatTemplate, tokenizer: Tokenizer, context: int):
        self._head = head
        self._template = template
        self._tokenizer = tokenizer
        self._context = context

    @property
    def start_tokens(self) -> Mapping[int, str]:
        """The id of each start token -> what begins with it.

        Raises:
            CheckpointError: the tokenizer lacks one.
        """
        for output in self._head.kinds.values():
            if not self._tokenizer.is_one_token(output.start_token):
                raise CheckpointError(
                    f"The tokenizer has no token {output.start_token}, after which this model draws. It belongs to "
                    "another checkpoint, or is damaged."
                )
        return {self._tokenizer.encode(output.start_token)[-1]: kind for kind, output in self._head.kinds.items()}

    def ids(self, kind: str, text: str) -> Sequence[int]:
        """Return the ids of a prompt for a picture; an empty text is the prompt that says nothing."""
        start = self._head.kinds[kind].start_token
        rendered = self._template.render([Turn("user", text.strip())], self._tokenizer.special_tokens)
        require_possible_length(rendered, self._context)
        return self._tokenizer.encode(f"{rendered.rstrip(' ')} {start}")


def require_kind(head: GenerationHead | None, kind: str, model: str) -> GenerationHead:
    """Return the head. Raises `ConfigError` if the model cannot make such pictures."""
    check_kind(() if head is None else head.kinds, kind, model)
    assert head is not None, "it draws"
    return head


def checked_text(prompt: object, name: str = "prompt") -> str:
    """Return the text of a prompt without media tokens. Raises `PromptError` if it is not a text, or empty."""
    if not isinstance(prompt, str):
        raise PromptError(f"The {name} of a picture is a text, got {shown(prompt)}.")
    text = without_media_tokens(prompt).strip()
    if not text:
        raise PromptError(f"The {name} of a picture is empty. Say what to draw, such as 'a snowy mountain'.")
    return text

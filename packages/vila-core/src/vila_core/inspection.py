"""Inspection of a prompt: every step between the prompt and the logits, and a drawing of it.

Dimensions: N tiles, H height, W width (pixels), T' tokens with media spliced in, D language model width, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from vila_core.config import VilaConfig
from vila_core.display import html
from vila_core.display.tiles import draw_parts, read_parts
from vila_core.prompt import PreparedMedium

if TYPE_CHECKING:
    import PIL.Image


@dataclass(frozen=True, repr=False)
class Inspection:
    """What the model saw of one prompt, step by step. In a notebook it shows the prompt, its tokens and its tiles.

    Attributes:
        prompt_text: the rendered template, with media tokens in place of media.
        input_ids: its token ids.
        media: the images and videos in prompt order, with their tiles.
        pixel_values: the tiles of all media, `[N, 3, H, W]` float32; None without media.
        media_embeddings: one block `[T_i, D]` per media token, in order, with the texts around it.
        inputs_embeds: the sequence that the language model reads, `[T', D]`.
        last_hidden: the language model's hidden states after the final norm, `[T', D]`.
        logits: the scores of the last positions, `[min(T', num_logits), V]`.
        token_counts: tokens of the sequence by part, in prompt order: "text", "image 1", …, "video 1", ….
        config: the model's configuration.
    """

    prompt_text: str
    input_ids: list[int]
    media: list[PreparedMedium]
    pixel_values: Tensor | None
    media_embeddings: list[Tensor]
    inputs_embeds: Tensor
    last_hidden: Tensor
    logits: Tensor
    token_counts: dict[str, int]
    config: VilaConfig = field(compare=False)

    def draw(self) -> "PIL.Image.Image":
        """Return the picture that `vila-infer --explain` draws: the token budget, and the tiles of every medium."""
        return draw_parts(read_parts(self.media, self.token_counts, self.config), self.config)

    def show(self) -> None:
        """Show that picture: in the notebook if there is one, else in the system's viewer."""
        html.show(self.draw())

    def __repr__(self) -> str:
        counts = ", ".join(f"{part} {tokens:,}" for part, tokens in self.token_counts.items())
        total = sum(self.token_counts.values())
        return f"Inspection({total:,} of {self.config.language_model.max_length:,} tokens: {counts})"

    def _repr_html_(self) -> str:
        tokens = {
            part.name: f"{part.tokens:,} tokens{part.description and f'; {part.description}'}"
            for part in read_parts(self.media, self.token_counts, self.config)
        }
        fields = "Fields: prompt_text, input_ids, media, pixel_values, inputs_embeds, last_hidden, logits, token_counts"
        return html.card(
            repr(self),
            html.facts_table(tokens),
            html.picture(self.draw()),
            html.note("The prompt, with one token in place of each medium or tile:"),
            html.block(self.prompt_text, limit=3000),
            html.note(fields),
        )

"""A conversation becomes a training sample: media prepared, text tokenized, answers labelled.

Dimensions: T tokens with media in place.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from vila_core.chat import ChatTemplate, Message, Turn
from vila_core.conversation import parts_of
from vila_core.encoders import ExpandedPrompt
from vila_core.errors import PromptTooLongError
from vila_core.media import Image, MediaLimits, Video
from vila_core.model import VilaModel
from vila_core.prompt import MediaWriter, PreparedPrompt, prepare
from vila_core.tokenizer import Tokenizer
from vila_train.data.conversations import Conversation, SampleError
from vila_train.data.turns import is_learned
from vila_train.drawing import DrawnPictures, pictures_in
from vila_train.errors import TrainingError
from vila_train.labels import IGNORE_INDEX, expand_labels, tokenize_with_labels
from vila_train.loss import Counts


@dataclass(frozen=True)
class TrainingSample:
    """A conversation, ready for the network.

    Attributes:
        name: says in messages which sample it is.
        prompt: its media and token ids.
        expanded: the ids with room for the media.
        labels: of the T positions of `expanded`; `IGNORE_INDEX` where no text is learned.
        drawn: of each medium, whether it is to be drawn; empty if none is.
        truncated: whether its end was left out because it was too long.
    """

    name: str
    prompt: PreparedPrompt
    expanded: ExpandedPrompt
    labels: Sequence[int]
    drawn: Sequence[bool] = ()
    truncated: bool = False

    def __len__(self) -> int:
        """T."""
        return len(self.labels)

    @property
    def num_labels(self) -> int:
        """How many tokens are predicted. The first token never is."""
        return sum(label != IGNORE_INDEX for label in self.labels[1:])

    @property
    def positions(self) -> list[int]:
        """The positions of pictures that are to be drawn, in order."""
        blocks = [block for of_medium, is_drawn in zip(self.expanded.blocks, self.drawn, strict=False) if is_drawn
                  for block in of_medium]  # fmt: skip
        places = set(self.expanded.places) if blocks else set[int]()
        return [position for block in blocks for position in block if position in places]

    @property
    def counts(self) -> Counts:
        """How many targets it has."""
        return Counts(self.num_labels, len(self.positions))

    @property
    def num_bytes(self) -> int:
        """Memory of its pixels."""
        return sum(medium.tiles.values.nbytes for medium in self.prompt.media)


@dataclass(frozen=True)
class Encoder:
    """Turns conversations into training samples for one model.

    Training cuts every image into tiles, as the reference does; inference only one that is alone in its prompt.
    """

    network: VilaModel
    tokenizer: Tokenizer
    template: ChatTemplate
    limits: MediaLimits

    @cached_property
    def pictures(self) -> DrawnPictures:
        """What the model can learn to draw. Raises `CheckpointError` if the tokenizer is another model's."""
        return DrawnPictures.of(self.network, self.tokenizer)

    def encode(self, name: str, messages: Sequence[Message]) -> TrainingSample:
        """Load the media of a conversation, render it and label its answers.

        Raises:
            MediaError: a medium cannot be read.
            PromptError: the conversation does not fit the template.
            SampleError: an answer has a picture that the model cannot learn to draw.
        """
        messages = self.pictures.prepare(name, messages, self.limits)
        prompt = self._prepare(messages, self.template, self.pictures.write if self.pictures.kinds else None)
        learned = [is_learned(message) for message in messages]
        split = self.network.config.splits_text_at_media
        ids, labels = tokenize_with_labels(prompt.turns, self.tokenizer, self.template, learned=learned, split=split)
        sample = self._sample(name, prompt, ids, labels)
        drawn = [is_learned(message) for message in messages for _ in pictures_in(message)]
        if not sample.num_labels or not any(drawn):
            return sample
        counts = zip(drawn, prompt.media_counts, strict=True)
        return replace(sample, drawn=[is_drawn for is_drawn, count in counts for _ in range(count)])

    def fit(
        self, conversation: Conversation, max_length: int, too_long: Literal["truncate", "drop", "error"]
    ) -> TrainingSample:
        """`encode` a conversation or document into at most `max_length` tokens.

        Args:
            conversation: of a dataset.
            max_length: in tokens, media included.
            too_long: what happens to a longer one: "truncate" keeps as many of its first turns as fit, or of a
                document's first texts and pictures.

        Raises:
            SampleError: it is too long and is dropped, its first turn alone is too long, or nothing in it is learned.
            TrainingError: it is too long and that is an error.
            MediaError, PromptError: as `encode` does.
        """
        name = conversation.name
        sample = self._encode_or_none(conversation, max_length)
        if sample is None and too_long == "truncate":
            shorter = _beginnings(conversation)
            # The longest that fits. Each attempt loads the media again, so there should be few.
            fitting = bisect_left(shorter, True, key=lambda one: self._encode_or_none(one, max_length) is None)
            sample = self._encode_or_none(shorter[fitting - 1], max_length) if fitting else None
            sample = None if sample is None else replace(sample, truncated=True)
        if sample is None:
            message = f"{name} has more than data.max_length = {max_length:,} tokens."
            if too_long == "error":
                raise TrainingError(f"{message} Raise the limit, or set data.too_long to truncate or drop.")
            raise SampleError(message, "too long", name)
        if not sample.num_labels:
            raise SampleError(f"{name} has no answer to learn from.", "no answer", name)
        return sample

    def encode_document(self, name: str, messages: Sequence[Message]) -> TrainingSample:
        """Return running text with media, all of whose text is learned, as far as it follows something.

        It ends with the tokenizer's end token; there is no chat template.

        Raises:
            MediaError: a medium cannot be read.
            PromptError: the document is empty.
        """
        prompt = self._prepare(messages, _Document(), _alone if self.pictures.kinds else None)
        return self._sample(name, prompt, prompt.input_ids, prompt.input_ids)

    def _encode_or_none(self, conversation: Conversation, max_length: int) -> TrainingSample | None:
        """Return None for a conversation that is too long."""
        encode = self.encode_document if conversation.is_document else self.encode
        try:
            sample = encode(conversation.name, conversation.messages)
        except PromptTooLongError:
            return None
        return sample if len(sample) <= max_length else None

    def _prepare(
        self, messages: Sequence[Message], template: ChatTemplate, write: MediaWriter | None
    ) -> PreparedPrompt:
        config = self.network.config
        preprocess = config.preprocess.model_copy(update={"tile_all": True})
        return prepare(
            messages,
            config.model_copy(update={"preprocess": preprocess}),
            self.tokenizer,
            template,
            self.limits,
            generation_prompt=False,
            conversation=messages,
            write=write,
        )

    def _sample(self, name: str, prompt: PreparedPrompt, ids: Sequence[int], labels: Sequence[int]) -> TrainingSample:
        expanded = self.network.expand(prompt)
        media_ids = self.tokenizer.media_token_ids.values()
        return TrainingSample(name, prompt, expanded, expand_labels(ids, labels, media_ids, expanded))


@dataclass(frozen=True)
class _Document:
    """A template that adds nothing to the text but an end token."""

    name: str = "document"
    end_token: str | None = None

    def render(
        self,
        turns: Sequence[Turn],
        special_tokens: Mapping[str, str],
        *,
        generation_prompt: bool = True,
        system_prompt: bool = True,
    ) -> str:
        return "".join(turn.text for turn in turns) + special_tokens.get("eos_token", "")


def _alone(message: Message, part: Image | Video, tokens: Sequence[str]) -> str:
    """Write pictures of a document without anything beside them."""
    return "".join(tokens)


def _beginnings(conversation: Conversation) -> list[Conversation]:
    """Return the beginnings of a conversation that end with an answer, or of a document, shortest first."""
    messages = conversation.messages
    if conversation.is_document:
        parts = [part for message in messages for part in parts_of(message)]
        shorter = [[Message(messages[0].role, parts[:end])] for end in range(1, len(parts))]
    else:
        ends = [index + 1 for index, message in enumerate(messages[:-1]) if message.role == "assistant"]
        shorter = [messages[:end] for end in ends]
    return [replace(conversation, messages=some) for some in shorter]

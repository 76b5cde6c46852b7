"""A conversation becomes a training sample: media prepared, text tokenized, answers labelled.

Dimensions: T tokens with media in place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vila_core.chat import ChatTemplate, Message
from vila_core.encoders import ExpandedPrompt
from vila_core.media import MediaLimits
from vila_core.model import VilaModel
from vila_core.prompt import PreparedPrompt, prepare
from vila_core.tokenizer import Tokenizer
from vila_train.labels import IGNORE_INDEX, expand_labels, tokenize_with_labels


@dataclass(frozen=True)
class TrainingSample:
    """A conversation, ready for the network.

    Attributes:
        name: says in messages which sample it is.
        prompt: its media and token ids.
        expanded: the ids with room for the media.
        labels: of the T positions of `expanded`; `IGNORE_INDEX` where nothing is learned.
    """

    name: str
    prompt: PreparedPrompt
    expanded: ExpandedPrompt
    labels: Sequence[int]

    def __len__(self) -> int:
        """T."""
        return len(self.labels)

    @property
    def num_labels(self) -> int:
        """How many tokens are predicted. The first token never is."""
        return sum(label != IGNORE_INDEX for label in self.labels[1:])


@dataclass(frozen=True)
class Encoder:
    """Turns conversations into training samples for one model.

    Training cuts every image into tiles, as the reference does; inference only one that is alone in its prompt.
    """

    network: VilaModel
    tokenizer: Tokenizer
    template: ChatTemplate
    limits: MediaLimits

    def encode(self, name: str, messages: Sequence[Message]) -> TrainingSample:
        """Load the media of a conversation, render it and label its answers.

        Raises:
            MediaError: a medium cannot be read.
            PromptError: the conversation does not fit the template.
        """
        config = self.network.config
        preprocess = config.preprocess.model_copy(update={"tile_all": True})
        prompt = prepare(
            messages,
            config.model_copy(update={"preprocess": preprocess}),
            self.tokenizer,
            self.template,
            self.limits,
            generation_prompt=False,
        )
        ids, labels = tokenize_with_labels(prompt.turns, self.tokenizer, self.template)
        return self._sample(name, prompt, ids, labels)

    def _sample(self, name: str, prompt: PreparedPrompt, ids: Sequence[int], labels: Sequence[int]) -> TrainingSample:
        expanded = self.network.expand(prompt)
        media_ids = self.tokenizer.media_token_ids.values()
        return TrainingSample(name, prompt, expanded, expand_labels(ids, labels, media_ids, expanded))

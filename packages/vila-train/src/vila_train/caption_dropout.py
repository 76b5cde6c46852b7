"""Caption dropout: some samples that ask for a picture lose their text, so that the model learns to draw without one.

Guidance compares the scores for a prompt with those for an empty one (classifier-free guidance, Ho and Salimans 2022).
"""

from dataclasses import dataclass
from hashlib import blake2b

from vila_core.chat import Message
from vila_core.conversation import parts_of
from vila_train.data.conversations import Conversation
from vila_train.data.turns import is_learned
from vila_train.drawing import pictures_in
from vila_train.packing.lanes import Order


@dataclass(frozen=True)
class CaptionDropout:
    """An order of samples, of which some lose their text.

    Which ones depends on the seed, the epoch and the position only, and so on neither ranks nor a resumption.

    Attributes:
        order: the samples.
        share: of the samples that ask for a picture.
        seed: of the draws.
    """

    order: Order
    share: float
    seed: int

    def __len__(self) -> int:
        return len(self.order)

    def conversation(self, epoch: int, position: int) -> Conversation:
        """Return a conversation, perhaps without its text. Raises `SampleError` as the order does."""
        conversation = self.order.conversation(epoch, position)
        digest = blake2b(f"caption/{self.seed}/{epoch}/{position}".encode(), digest_size=8).digest()
        drops = int.from_bytes(digest, "big") < self.share * 2**64
        return (without_prompt(conversation) if drops else None) or conversation


def without_prompt(conversation: Conversation) -> Conversation | None:
    """Return a sample of drawing without its text: the prompt that guidance compares with.

    None for other samples: those with a picture in a question, a text in an answer, or several questions.
    """
    asked = [message for message in conversation.messages if message.role != "system"]
    if conversation.is_document or [message.role for message in asked] != ["user", "assistant"]:
        return None
    question, answer = asked
    texts = [part for part in parts_of(answer) if isinstance(part, str) and part.strip()]
    if pictures_in(question) or texts or not pictures_in(answer) or not is_learned(answer):
        return None
    return Conversation(conversation.name, [Message("user", ""), answer])

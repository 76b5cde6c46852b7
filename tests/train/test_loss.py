"""The chunked loss equals the loss on whole logits, gradients included."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vila_train import loss
from vila_train.loss import TimeTokens, chunked_cross_entropy, cross_entropy_sum

TOKENS, WIDTH, VOCAB = 23, 8, 40


class LowRankHead(nn.Module):
    """A frozen head with a trainable low-rank update, as LoRA makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, VOCAB, bias=False).requires_grad_(False)
        self.down, self.up = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, VOCAB, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


HEADS = {
    "linear": lambda: nn.Linear(WIDTH, VOCAB, bias=False),
    "frozen": lambda: nn.Linear(WIDTH, VOCAB, bias=False).requires_grad_(requires_grad=False),
    "low rank": LowRankHead,
    "bias": lambda: nn.Linear(WIDTH, VOCAB),
}


@pytest.mark.parametrize("head_kind", HEADS)
@pytest.mark.parametrize("chunk", [1, 5, 23, 100])
@pytest.mark.parametrize("has_time_tokens", [False, True], ids=["hard", "time tokens"])
def test_chunks_change_nothing(head_kind: str, chunk: int, has_time_tokens: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", chunk * VOCAB)
    torch.manual_seed(0)
    head = HEADS[head_kind]().double()
    hidden = torch.randn(TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(VOCAB, (TOKENS,))
    time_tokens = TimeTokens(torch.arange(30, 40), 1.5) if has_time_tokens else None
    whole = cross_entropy_sum(head(hidden), labels, time_tokens)
    chunked = chunked_cross_entropy(head, hidden, labels, time_tokens, vocab_size=VOCAB)
    torch.testing.assert_close(chunked, whole)
    inputs = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    for one, other in zip(
        torch.autograd.grad(chunked * 0.3, inputs), torch.autograd.grad(whole * 0.3, inputs), strict=True
    ):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(chunked_cross_entropy(head, hidden, labels, time_tokens, vocab_size=VOCAB), whole)


def test_a_tied_head_adds_its_gradient_to_the_embedding():
    torch.manual_seed(0)
    embedding = nn.Embedding(VOCAB, WIDTH).double()
    ids = torch.randint(VOCAB, (TOKENS,))

    def loss_of(function: object) -> torch.Tensor:
        embedding.zero_grad()
        hidden = embedding(ids).tanh()
        head = lambda x: F.linear(x, embedding.weight)  # noqa: E731
        total = (
            chunked_cross_entropy(head, hidden, ids, vocab_size=VOCAB)
            if function is chunked_cross_entropy
            else cross_entropy_sum(head(hidden), ids)
        )
        total.backward()
        assert embedding.weight.grad is not None
        return embedding.weight.grad.clone()

    torch.testing.assert_close(loss_of(chunked_cross_entropy), loss_of(cross_entropy_sum))


def test_no_labels_give_a_loss_of_zero():
    head = nn.Linear(WIDTH, VOCAB)
    hidden = torch.randn(0, WIDTH, requires_grad=True)
    total = chunked_cross_entropy(head, hidden, torch.empty(0, dtype=torch.int64), vocab_size=VOCAB)
    total.backward()
    assert total.item() == 0


def test_half_precision_sums_in_fp32():
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCAB, bias=False).bfloat16()
    hidden = torch.randn(500, WIDTH).bfloat16()
    labels = torch.randint(VOCAB, (500,))
    total = chunked_cross_entropy(head, hidden, labels, vocab_size=VOCAB)
    assert total.dtype == torch.float32
    expected = F.cross_entropy(head(hidden).float(), labels, reduction="sum")
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)

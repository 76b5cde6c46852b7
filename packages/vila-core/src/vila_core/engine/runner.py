"""Runners compute what the engine decides: they read chunks of prompts, and let a batch of answers grow by one token.

`PagedRunner` runs a decoder of this package over a paged KV cache. `SeparateRunner` runs any other language model, with
a cache of its own for each request, which is neither shared nor read in chunks.

R rows, n requests, T tokens of a chunk, D width, V vocabulary
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from vila_core.device_memory import is_out_of_memory
from vila_core.engine.completion import TokenLogprobs
from vila_core.engine.drawing_step import DrawingStep, PendingDrawings
from vila_core.engine.memory import num_pages, too_little_memory
from vila_core.engine.pages import PagePool, pages_of
from vila_core.engine.row_order import RowOrder
from vila_core.errors import ConfigError, GenerationError
from vila_core.generation.heads import GenerationHead
from vila_core.language import LanguageModel
from vila_core.language.decoder import Decoder
from vila_core.language.divided import NativeDecoder, embedding, new_pages
from vila_core.language.paged_prefill import NextTokens, prefill_graphs
from vila_core.language.paged_rows import ReadyTokens, StepKind, StepRows
from vila_core.language.paged_step import PagedStep, PendingTokens, TorchStep, paged_step
from vila_core.language.read_ahead import TokensAhead
from vila_core.uploads import upload

if TYPE_CHECKING:
    from vila_core.engine.limits import EngineConfig
    from vila_core.engine.request import Request
    from vila_core.language.cache import Cache


class Runner(Protocol):
    """Computes for an engine.

    Attributes:
        device: of the model.
        dtype: of the model.
        pool: the pages of its KV cache.
        reads_in_chunks: whether a prompt may be read in parts, and its pages be shared.
        overlaps: whether a step may be launched before the tokens of the last one are known.
        checks_drafts: whether `step` takes drafts.
    """

    device: torch.device
    dtype: torch.dtype
    pool: PagePool
    reads_in_chunks: bool
    overlaps: bool
    checks_drafts: bool

    def pages_for(self, tokens: int) -> int:
        """Return how many pages a request of so many tokens needs."""
        ...

    def copy_page(self, source: int, target: int) -> None:
        """Copy the keys and values of a page to another one."""
        ...

    def read(self, requests: "Sequence[Request]", embeds: Sequence[Tensor]) -> Tensor:
        """Read the next tokens `[T_i, D]` of each request; return the hidden states of the last ones, `[n, D]`.

        Several requests are read together only from their beginnings.
        """
        ...

    def start(self, requests: "Sequence[Request]", hidden: Tensor) -> "PendingStep":
        """Give rows to requests that have been read, and choose their first tokens from `hidden [n, D]`."""
        ...

    def start_drawing(self, requests: "Sequence[Request]", hidden: Tensor) -> "PendingStep":
        """Give rows to requests that draw, and to their companions, and choose the first codes.

        Args:
            requests: without companions.
            hidden: `[n, D]`, of each request and then of its companion.
        """
        ...

    def step(self, drafts: "Mapping[Request, Sequence[int]]") -> "PendingStep":
        """Read the last token of every request that has a row, and choose the next; let those that draw draw.

        Args:
            drafts: what the next tokens of some requests may be. Such a request gets as many tokens as the draft is
                right about, and one more. The last token of every request must be known.
        """
        ...

    def leave(self, request: "Request") -> None:
        """Forget a request, whether it has a row or not."""
        ...


@dataclass(frozen=True)
class PendingStep:
    """The tokens of a step, which the device may still be computing.

    Attributes:
        requests: in the order of their rows; one that gets several tokens comes as often.
        chosen: their tokens.
        dtype: of the model.
        logprobs: log-probabilities of all tokens; None if nobody asked.
        drawn: what other requests draw in the same step.
    """

    requests: "Sequence[Request]"
    chosen: PendingTokens
    dtype: torch.dtype
    logprobs: "Logprobs | None" = None
    drawn: "PendingDrawings | None" = None

    def tokens(self) -> "Iterator[tuple[Request, int, TokenLogprobs | None]]":
        """Yield each request with its token (-1 if the logits cannot be used) and, if it asked, its log-probability."""
        chosen = self.chosen.tokens()
        for row, (request, token_id) in enumerate(zip(self.requests, chosen, strict=False)):
            wanted = self.logprobs if request.config.logprobs and token_id >= 0 else None
            yield request, token_id, wanted and wanted.of(row, token_id, request.config.top_logprobs)


@dataclass(frozen=True)
class Logprobs:
    """Log-probabilities of a step.

    Attributes:
        all: `[n, V]`.
    """

    all: Tensor

    def of(self, row: int, token_id: int, count: int) -> TokenLogprobs:
        """Return those of the chosen token and of the `count` likeliest."""
        line = self.all[row]
        values, ids = line.topk(min(count, len(line)))
        return TokenLogprobs(token_id, float(line[token_id]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


class RowRunner:
    """The part that runners share: requests in rows without gaps.

    Args:
        llm: the language model.
        step: computes.
        weight: any of the model's, for its device and dtype.
        head: draws; None if the model only writes.
    """

    def __init__(self, llm: LanguageModel, step: PagedStep, weight: Tensor, head: GenerationHead | None):
        self._llm = llm
        self._step = step
        self.device = weight.device
        self.dtype = weight.dtype
        self._order = RowOrder(step.rows)
        self._drawing = None if head is None else DrawingStep(llm, step, weight, head, self._order)
        self._kind: StepKind | None = None  # what the rows that write need; None when they have changed

    def start(self, requests: "Sequence[Request]", hidden: Tensor) -> PendingStep:
        """See `Runner`."""
        for request in requests:
            self._order.add(request, draws=False)
        self._kind = None
        kind = self._restrict(requests, StepKind.of([request.sampling for request in requests]))
        chosen = self._step.choose([request.row for request in requests], self._llm.logits(hidden), kind)
        return self._pending(tuple(requests), chosen)

    def start_drawing(self, requests: "Sequence[Request]", hidden: Tensor) -> PendingStep:
        """See `Runner`."""
        assert self._drawing is not None, "only a model with a head draws"
        self._kind = None
        return PendingStep((), NOTHING, self.dtype, drawn=self._drawing.start(requests, hidden))

    def step(self, drafts: "Mapping[Request, Sequence[int]]") -> PendingStep:
        """See `Runner`."""
        self._order.update_pages()
        if self._kind is None:
            self._kind = StepKind.of([request.sampling for request in self._order.writing])
        if self._order.num_drawing:
            return self._step_and_draw(self._kind)
        if drafts:
            return self._check(drafts, self._kind)
        kind = self._restrict(self._order.requests, self._kind)
        return self._pending(tuple(self._order.requests), self._step.launch(len(self._order.requests), kind))

    def _step_and_draw(self, kind: StepKind) -> PendingStep:
        """A step in which some rows draw; the language model reads what all rows read next together."""
        assert self._drawing is not None, "only a model with a head draws"
        writing = self._order.writing
        if not writing:
            return PendingStep((), NOTHING, self.dtype, drawn=self._drawing.step())
        drawn, hidden = self._drawing.step_with_others()
        kind = self._restrict(writing, kind)
        rows = range(self._order.num_drawing, len(self._order.requests))
        pending = self._pending(tuple(writing), self._step.choose(rows, self._llm.logits(hidden), kind))
        return replace(pending, drawn=drawn)

    def _check(self, drafts: "Mapping[Request, Sequence[int]]", kind: StepKind) -> PendingStep:
        """Read the last token of every request and its draft; let it go on by what the model chooses itself."""
        rows = self._step.rows
        ids: list[list[int]] = []
        masks: list[Tensor] = []
        for request in self._order.requests:
            draft = drafts.get(request, ())
            allowed: Sequence[Tensor | None] = [None] * (1 + len(draft))
            if request.grammar is not None:
                allowed = request.grammar.allowed_along(draft)
                kind = replace(kind, masks=True)
            ids.append([request.answer.token_ids[-1], *draft[: len(allowed) - 1]])
            masks += [(_ALL if one is None else one).expand(rows.allowed.shape[1]) for one in allowed]
        starts = [request.length for request in self._order.requests]
        ahead = TokensAhead(ids, starts, torch.stack(masks) if kind.masks else None)
        found = self._step.read_ahead(ahead, kind)
        chosen = found.tokens()
        agreed = ahead.agreed(chosen)
        rows.advance([[chosen[place] for place in places] for places in agreed], penalizes=kind.penalizes)
        index = torch.tensor([place for places in agreed for place in places], device=self.device)
        requests = [request for request, places in zip(self._order.requests, agreed, strict=True) for _ in places]
        return self._pending(requests, ReadyTokens(found.logits[index], found.chosen[index]))

    def leave(self, request: "Request") -> None:
        """See `Runner`."""
        if request.row >= 0:
            self._kind = None
            self._order.remove(request)

    def _restrict(self, requests: "Sequence[Request]", kind: StepKind) -> StepKind:
        """Restrict the next tokens of requests that follow a grammar; return the kind of a step that does so."""
        for request in requests:
            if request.grammar is not None:
                allowed = request.grammar.allowed()
                self._step.rows.allow(request.row, _ALL if allowed is None else allowed)
                kind = replace(kind, masks=True)
        return kind

    def _pending(self, requests: "Sequence[Request]", chosen: PendingTokens) -> PendingStep:
        wanted = any(request.config.logprobs for request in requests)
        logprobs = Logprobs(chosen.logits.float().log_softmax(dim=-1)) if wanted else None
        return PendingStep(requests, chosen, self.dtype, logprobs)


NOTHING = ReadyTokens(torch.empty(0, 0), torch.empty(0, dtype=torch.int64))
"""The tokens of a step in which nobody writes."""
_ALL = torch.tensor(-1, dtype=torch.int32)
"""A mask that allows every token."""


class PagedRunner(RowRunner):
    """Runs a native decoder over a paged KV cache, also on several devices.

    Args:
        decoder: the language model.
        config: how much memory and how many rows.
        head: draws; None if the model only writes.

    Raises:
        GenerationError: there is too little memory for the cache.
    """

    def __init__(self, decoder: NativeDecoder, config: "EngineConfig", head: GenerationHead | None = None):
        weight = embedding(decoder)
        pages = num_pages(decoder, config)
        try:
            self._cache = new_pages(decoder, pages + 1, in_8_bits=config.kv_cache_dtype == "fp8")
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise too_little_memory(decoder, config, pages) from None
        row_pages = min(pages, pages_of(decoder.config.max_length))
        super().__init__(decoder, paged_step(decoder, self._cache, config.max_batch, row_pages), weight, head)
        self.pool = PagePool(pages)
        self._graphs = prefill_graphs(decoder, self._cache, row_pages, self._step)
        scaling = decoder.config.rope_scaling
        # Under dynamic scaling, the angles of all tokens depend on the length of the whole prompt.
        self.reads_in_chunks = scaling is None or scaling.rope_type != "dynamic"
        self.overlaps = weight.is_cuda
        self.checks_drafts = self.reads_in_chunks

    def pages_for(self, tokens: int) -> int:
        """See `Runner`."""
        return pages_of(tokens)

    def copy_page(self, source: int, target: int) -> None:
        """See `Runner`."""
        self._cache.copy_page(source, target)

    def read(self, requests: "Sequence[Request]", embeds: Sequence[Tensor]) -> Tensor:
        """See `Runner`."""
        lengths = [len(one) for one in embeds]
        start, longest = requests[0].length, max(lengths)
        assert not start or len(requests) == 1, "chunks in the middle of a prompt are read one by one"
        if self._graphs is not None:
            prompts = [
                NextTokens(one, request.length, request.pages) for request, one in zip(requests, embeds, strict=True)
            ]
            if self._graphs.takes(prompts):
                return self._graphs(prompts)
        # Padding is written past the end of a row: to its own pages, and from there on to a page that nobody reads.
        table = torch.full((len(requests), pages_of(start + longest)), self.pool.num_pages)
        for row, request in zip(table, requests, strict=True):
            pages = request.pages[: len(row)]
            row[: len(pages)] = torch.tensor(pages)
        cache = self._cache.rows(upload(table, self.device)).up_to(start + longest)
        positions = torch.arange(start, start + longest, device=self.device)[None] if start else None
        ends = upload(lengths, self.device)
        hidden = self._llm(
            nn.utils.rnn.pad_sequence(list(embeds), batch_first=True),
            positions=positions,
            cache=cache,
            lengths=None if min(lengths) == longest else ends,
        )
        return hidden[torch.arange(len(embeds), device=self.device), ends - 1]


class SeparateRunner(RowRunner):
    """Runs any language model, with a cache for each request.

    Args:
        llm: the language model.
        config: how many rows.
        head: draws; None if the model only writes.
    """

    def __init__(self, llm: LanguageModel, config: "EngineConfig", head: GenerationHead | None = None):
        assert isinstance(llm, nn.Module), "a language model is a module"
        weight = next(llm.parameters())
        rows = StepRows.allocate(config.max_batch, 1, llm.config.vocab_size, weight.device)
        super().__init__(llm, SeparateStep(llm, rows, self._cache_of_row), weight, head)
        self.pool = PagePool(0)
        self.reads_in_chunks = False
        self.overlaps = False
        self.checks_drafts = False
        self._caches: dict[Request, Cache] = {}

    def pages_for(self, tokens: int) -> int:
        """See `Runner`: the caches are the requests' own."""
        del tokens
        return 0

    def copy_page(self, source: int, target: int) -> None:
        """See `Runner`: there are no pages."""

    def read(self, requests: "Sequence[Request]", embeds: Sequence[Tensor]) -> Tensor:
        """See `Runner`. Each of `embeds` is a whole prompt."""
        return torch.stack([self._read(*one) for one in zip(requests, embeds, strict=True)])

    def _read(self, request: "Request", embeds: Tensor) -> Tensor:
        tokens = request.most_tokens
        try:
            cache = self._llm.new_cache(1, tokens)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise GenerationError(
                f"There is too little memory for a cache of {tokens:,} tokens. Reduce max_new_tokens or the prompt."
            ) from None
        self._caches[request] = cache
        return self._llm(embeds[None], cache=cache)[0, -1]

    def leave(self, request: "Request") -> None:
        """See `Runner`."""
        super().leave(request)
        self._caches.pop(request, None)

    def _cache_of_row(self, row: int) -> "Cache":
        return self._caches[self._order.requests[row]]


class SeparateStep(TorchStep):
    """A step of rows that have a cache each.

    Args:
        llm: the language model.
        rows: their state.
        cache_of: the cache of a row.
    """

    def __init__(self, llm: LanguageModel, rows: StepRows, cache_of: "Callable[[int], Cache]"):
        super().__init__(llm, rows)
        self._cache_of = cache_of

    def _hidden(self, rows: Tensor, positions: Tensor, embeds: Tensor) -> Tensor:
        hidden = [
            self._llm.decode_step(
                one[None],
                torch.tensor([[position]], device=embeds.device),
                self._cache_of(row).up_to(position + 1),
            )
            for row, position, one in zip(rows.tolist(), positions.tolist(), embeds, strict=True)
        ]
        return torch.cat(hidden)[:, -1]


def choose_runner(llm: LanguageModel, config: "EngineConfig", head: GenerationHead | None = None) -> Runner:
    """Return the runner for a language model, and for the head that draws with it."""
    return PagedRunner(llm, config, head) if isinstance(llm, NativeDecoder) else SeparateRunner(llm, config, head)


def require_cache_dtype(llm: LanguageModel, config: "EngineConfig", *, is_split: bool = False) -> None:
    """Raise `ConfigError` if the language model, or its parts on several devices, cannot have the cache asked for."""
    if config.kv_cache_dtype != "auto" and (is_split or not isinstance(llm, Decoder)):
        kind = "is split over several devices" if is_split else f"({type(llm).__name__}) keeps a cache of its own"
        raise ConfigError(
            f"kv_cache_dtype={config.kv_cache_dtype!r} needs a native decoder on one device, but this language model "
            f"{kind}. Leave kv_cache_dtype at 'auto'."
        )

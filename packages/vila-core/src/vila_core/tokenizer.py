"""Tokenizes prompt text with media tokens, and finds the tokens that stop an answer."""

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vila_core.chat import MEDIA_TOKENS, SENTINEL_TOKEN, ChatTemplate, Turn
from vila_core.errors import CheckpointError, PromptError, VilaError, shown
from vila_core.tokenizer_checks import check_tokenizer_files
from vila_core.tokenizer_folder import tokenizer_config, tokenizer_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Tokenizer:
    """A Hugging Face tokenizer with sentinel and media tokens.

    Tokens that the checkpoint lacks are appended in the same order as in the reference: sentinel, image, video.
    """

    def __init__(self, hf: "PreTrainedTokenizerBase"):
        self.hf = hf
        hf.add_tokens([SENTINEL_TOKEN, *MEDIA_TOKENS.values()], special_tokens=True)
        self.sentinel_token_id = self._id(SENTINEL_TOKEN)
        self.media_token_ids: dict[str, int] = {name: self._id(token) for name, token in MEDIA_TOKENS.items()}

    @classmethod
    def from_folder(cls, path: Path) -> "Tokenizer":
        """Load the tokenizer in the folder `path`. Code in the folder is never run.

        Raises:
            CheckpointError: the folder has no tokenizer, or it cannot be read.
        """
        from transformers import AutoTokenizer

        if not any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            raise CheckpointError(
                f"No tokenizer in '{path}': expected tokenizer.json, tokenizer.model or vocab.json there."
            )
        check_tokenizer_files(path)
        with _reported_as_damage(f"The tokenizer in '{path}' cannot be read"), tokenizer_folder(path) as folder:
            hf = AutoTokenizer.from_pretrained(
                folder,
                config=tokenizer_config(path),
                padding_side="right",
                use_fast=True,
                legacy=False,
                local_files_only=True,
                trust_remote_code=False,
                clean_up_tokenization_spaces=False,
            )
            tokenizer = cls(hf)
        tokenizer._require_that_it_reads_text(path)
        return tokenizer

    def _require_that_it_reads_text(self, path: Path) -> None:
        """Raise `CheckpointError` if the tokenizer drops text: an empty vocabulary answers an empty prompt."""
        with _reported_as_damage(f"The tokenizer in '{path}' does not work"):
            ids = [*self.hf(_PROBE, add_special_tokens=False, verbose=False).input_ids]
            self.decode(ids)
        if not ids or all(token_id == self.hf.unk_token_id for token_id in ids):
            raise CheckpointError(
                f"The tokenizer in '{path}' knows no text: it reads {_PROBE!r} as {len(ids)} unknown tokens. Its "
                "vocabulary is empty or damaged. Copy it from the original checkpoint."
            )

    def require_ids_below(self, vocab_size: int) -> None:
        """Raise `CheckpointError` if a token has no row in an embedding of `vocab_size` rows."""
        token, token_id = max(self.hf.get_vocab().items(), key=lambda entry: entry[1])
        if (added := max(self.encode(_PROBE))) > token_id:  # by a post-processor
            token, token_id = "added to every text", added
        if token_id >= vocab_size:
            raise CheckpointError(
                f"The tokenizer's token {shown(token)} has the id {token_id:,}, but the embedding has {vocab_size:,} "
                "rows. The tokenizer belongs to another checkpoint, or is damaged."
            )

    def __len__(self) -> int:
        return len(self.hf)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, with the special tokens that the tokenizer adds (such as LLaMA's `<s>`).

        Raises:
            PromptError: the text is not valid Unicode: an undecodable byte, or half of a surrogate pair.
        """
        _require_unicode(text)
        with _reported_as_damage(_FAILS):
            return list(self.hf(text, verbose=False).input_ids)  # `Vila` checks the length

    def encode_split(self, text: str) -> list[int]:
        """Return the ids of `text`, of which the parts between media tokens are tokenized one by one.

        Tokens that the tokenizer puts before each text, such as `<s>`, stand only before the first part.

        Raises:
            PromptError: as `encode` does.
        """
        prefix = self.encode("")
        ids = [*prefix]
        for part in _split_at_media(text):
            encoded = self.encode(part)
            ids += encoded[len(prefix) :] if encoded[: len(prefix)] == prefix else encoded
        return ids

    def encode_split_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of `encode_split`, and the characters that each comes from as `encode_with_spans` does.

        Raises:
            PromptError, CheckpointError: as `encode_with_spans` does.
        """
        prefix = self.encode("")
        ids, spans = [*prefix], [(0, 0)] * len(prefix)
        place = 0
        for part in _split_at_media(text):
            encoded, within = self.encode_with_spans(part)
            first = len(prefix) if encoded[: len(prefix)] == prefix else 0
            ids += encoded[first:]
            spans += [(place + start, place + end) for start, end in within[first:]]
            place += len(part)
        return ids, spans

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of `text` as `encode` does, and the characters `[start, end)` that each comes from.

        Added special tokens come from none: their span is empty.

        Raises:
            PromptError: the text is not valid Unicode.
            CheckpointError: the tokenizer cannot say where its tokens come from.
        """
        _require_unicode(text)
        with _reported_as_damage(_FAILS):
            encoded = self.hf(text, verbose=False, return_offsets_mapping=True)
        return list(encoded.input_ids), [(start, end) for start, end in encoded.offset_mapping]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`."""
        return str(self._decode(list(ids), skip_special_tokens=skip_special_tokens))

    @cached_property
    def _decode(self) -> Callable[..., Any]:
        """The tokenizer's own decoder without transformers' checks, which take ten times as long as one token."""
        backend: Any = getattr(self.hf, "backend_tokenizer", None)
        cleans = self.hf.clean_up_tokenization_spaces and type(getattr(backend, "model", None)).__name__ != "BPE"
        return self.hf.decode if backend is None or cleans else backend.decode

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Special tokens by attribute name (`bos_token` …), for chat templates."""
        return {name: str(token) for name, token in self.hf.special_tokens_map.items()}

    @property
    def eos_token_id(self) -> int | None:
        token_id: Any = self.hf.eos_token_id
        return token_id

    @property
    def max_length(self) -> int:
        """Context length in tokens according to the tokenizer (a huge number if it does not say)."""
        return int(self.hf.model_max_length)

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that comes with the tokenizer, if any."""
        source = self.hf.chat_template
        if isinstance(source, dict):
            source = source.get("default")
        return source

    def is_one_token(self, text: str) -> bool:
        """Return whether `text` is one token of the vocabulary."""
        return text in self.hf.get_vocab()

    def stop_token_ids(self, template: ChatTemplate) -> frozenset[int]:
        """Return the ids that end an answer with `template`: eos, and the tokens that follow an answer in it.

        As in the reference (`llava/utils/tokenizer.py: infer_stop_tokens`), a long dummy conversation has the
        sentinel as every answer, and each token that follows a sentinel is a stop token.
        """
        question_and_answer = [Turn("user", "question"), Turn("assistant", SENTINEL_TOKEN)]
        ids = self.encode(template.render(question_and_answer * 10, self.special_tokens, generation_prompt=False))
        after = {following for token, following in pairwise(ids) if token == self.sentinel_token_id}
        stops = {self._same_text(token) for token in after}
        return frozenset(stops | ({self.eos_token_id} if self.eos_token_id is not None else set()))

    def _same_text(self, token: int) -> int:
        """Return the token named like the decoded text of `token`: "▁<" becomes "<", as in the reference."""
        text = self.decode([token], skip_special_tokens=False)
        return self._id(text) if self.is_one_token(text) else token

    def _id(self, token: str) -> int:
        token_id: object = self.hf.convert_tokens_to_ids(token)
        if not isinstance(token_id, int):
            raise CheckpointError(f"The tokenizer of this checkpoint has no id for {token!r}, though it was added.")
        return token_id


def _split_at_media(text: str) -> list[str]:
    """Return the parts of a text between media tokens, and these tokens, in order."""
    return re.split(f"({'|'.join(map(re.escape, MEDIA_TOKENS.values()))})", text)


def _require_unicode(text: str) -> None:
    """Raise `PromptError` for undecodable bytes and halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.start + 20]
        raise PromptError(
            f"The text is not valid Unicode: {text[error.start]!a} in {around!a}. Write it in UTF-8."
        ) from None


_FAILS = "The tokenizer of this checkpoint fails on this text"
_PROBE = "The quick brown fox: 1, 2, 3?"


@contextmanager
def _reported_as_damage(message: str) -> Generator[None]:
    """Turn what tokenizer libraries raise for damaged files into `CheckpointError`, also a panic of their Rust code."""
    try:
        yield
    except (VilaError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic is no Exception
        text = str(error).strip()
        reason = f"{type(error).__name__}: {text}" if isinstance(error, LookupError | AttributeError) else text
        raise CheckpointError(f"{message}: {reason or type(error).__name__}") from None

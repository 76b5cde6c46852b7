"""Streaming of token ids as text with tokenizers of both families, and stop strings."""

import random

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vila_core.engine.text import Detokenizer, StopStrings
from vila_core.errors import PromptError
from vila_core.tokenizer import Tokenizer

TEXTS = [
    "Hello world, this is plain.",
    "  two leading spaces and  two  inside ",
    "Grüße aus Köln, 日本語のテキスト 🙂🙃",
    "🙂🙂🙂",
    "newline\n\nand\ttab",
    "family 👩‍👩‍👧‍👦 flags 🇩🇪🇯🇵 combining é",
    "",
]


@pytest.fixture(scope="module")
def sentencepiece_like() -> Tokenizer:
    """Llama's kind: `▁` for spaces, with the first one stripped; unknown characters as bytes such as `<0xE2>`."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += [
        *"abcdefghijklmnopqrstuvwxyzHGKTABCDEFabc,.",
        "▁hello",
        "▁world",
        "▁this",
        "▁is",
        "Hello",
        "ll",
        "▁two",
        "ing",
        "日",
        "本",
    ]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    fast = FastTokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    hf = PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<s>", eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )
    return Tokenizer(hf)


@pytest.fixture(params=["byte-level", "sentencepiece"])
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue("tokenizer" if request.param == "byte-level" else "sentencepiece_like")


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text_and_are_whole_characters(any_tokenizer: Tokenizer, text: str) -> None:
    ids = any_tokenizer.encode(text)
    pieces = pieces_of(any_tokenizer, ids)
    assert "".join(pieces) == any_tokenizer.decode(ids)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


def test_random_ids_join_to_their_text(any_tokenizer: Tokenizer) -> None:
    draw = random.Random(3)
    for _ in range(60):
        # Bytes that are not UTF-8 only go to the byte-level tokenizer: the other replaces a whole run of them.
        ids = [draw.randrange(len(any_tokenizer)) for _ in range(draw.randrange(1, 40))]
        if any_tokenizer.hf.unk_token:
            ids = [
                token_id for token_id in ids if not any_tokenizer.hf.convert_ids_to_tokens(token_id).startswith("<0x")
            ]
        assert "".join(pieces_of(any_tokenizer, ids)) == any_tokenizer.decode(ids)


def test_random_characters_join_to_their_text(any_tokenizer: Tokenizer) -> None:
    draw = random.Random(4)
    ranges = [(0x20, 0x7F), (0xA0, 0xD7FF), (0x1F300, 0x1F700)]
    for _ in range(60):
        text = "".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(12))
        ids = any_tokenizer.encode(text)
        joined = "".join(pieces_of(any_tokenizer, ids))
        assert joined == any_tokenizer.decode(ids)
        assert joined.lstrip() == text.lstrip()


def test_special_tokens_between_words_add_no_text(sentencepiece_like: Tokenizer) -> None:
    hello, world, end = (sentencepiece_like.hf.convert_tokens_to_ids(token) for token in ("▁hello", "▁world", "</s>"))
    assert pieces_of(sentencepiece_like, [end, hello, end, end, world]) == ["", "hello", "", "", " world", ""]


@pytest.mark.parametrize("text", ["a \ud800 b", b"caf\xe9".decode(errors="surrogateescape")])
def test_invalid_unicode_is_reported_with_its_place(any_tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(PromptError, match=r"not valid Unicode: '.u....' in '"):
        any_tokenizer.encode(text)


def test_text_is_returned_as_soon_as_its_characters_are_complete(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ab 🙂 cd")
    seen = ""
    for token_id, piece in zip(ids, pieces_of(tokenizer, ids), strict=False):
        seen += piece
        known = tokenizer.decode(ids[: ids.index(token_id) + 1]).rstrip("\N{REPLACEMENT CHARACTER}")
        assert len(seen) >= len(known)


@pytest.mark.parametrize(
    ("pieces", "stop", "visible", "found"),
    [
        (["ab", "cS", "TO", "Pd"], ["STOP"], ["ab", "c", "", ""], True),
        (["S", "T", "x"], ["STOP"], ["", "", "STx"], False),
        (["aS", "SS", "TOP"], ["STOP"], ["a", "SS", ""], True),
        (["ab"], ["b", "ab"], [""], True),
        (["xaby"], ["by", "ab"], ["x"], True),
        (["\n", "\n", "User"], ["\n\nUser:"], ["", "", ""], False),
        (["nothing"], [], ["nothing"], False),
    ],
)
def test_stop_strings_across_pieces(pieces: list[str], stop: list[str], visible: list[str], found: bool) -> None:
    strings = StopStrings(stop)
    assert [strings.push(piece) for piece in pieces] == visible
    assert strings.found is found
    if not found:
        assert "".join(visible) + strings.finish() == "".join(pieces)


def test_stop_strings_against_a_plain_search() -> None:
    draw = random.Random(9)
    for _ in range(300):
        text = "".join(draw.choice("ab") for _ in range(draw.randrange(20)))
        stop = ["".join(draw.choice("ab") for _ in range(draw.randrange(1, 6))) for _ in range(draw.randrange(1, 4))]
        strings, visible, rest = StopStrings(stop), "", text
        while rest and not strings.found:
            size = draw.randrange(1, 4)
            visible += strings.push(rest[:size])
            rest = rest[size:]
        visible += strings.finish()
        # The stream cannot know that a longer stop string, which starts earlier, will be complete later.
        ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
        if not ends:
            assert (visible, strings.found) == (text, False)
        else:
            assert strings.found
            assert visible in {text[:start] for _, start in ends}

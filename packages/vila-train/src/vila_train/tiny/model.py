"""vila-tiny: the architecture and the tokenizer of the embedded model."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vila_core.chat import IMAGE_TOKEN, SENTINEL_TOKEN, VIDEO_TOKEN
from vila_core.config import DecoderConfig, PixelConfig, PreprocessConfig, ProjectorConfig, SiglipConfig, VilaConfig
from vila_core.tokenizer import Tokenizer
from vila_train.tiny.data import Encoder
from vila_train.tiny.world import CAPTIONS, TASKS, make_sample
from vila_train.tiny.world.combinations import words_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IMAGE_SIZE = 96
PATCH_SIZE = 8
TOKENS_PER_PICTURE = (IMAGE_SIZE // PATCH_SIZE // 2) ** 2
CONTEXT = 2048
VOCABULARY = 1024
"""Upper limit of the vocabulary, special tokens included."""

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", SENTINEL_TOKEN, IMAGE_TOKEN, VIDEO_TOKEN)

# Qwen2's pre-tokenizer. It splits numbers into single digits, so that they are spelled.
_QWEN2_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_SMALL_TALK = (
    "You are a helpful assistant. system user assistant. Question: Answer: yes no Please answer with one word.",
    "Look at this image and tell me what you see. Compare the two images. What happened in this video, and why? "
    "Thank you very much!",
    "The quick brown fox jumps over the lazy dog. How are you today? Can you read this? I do not know. "
    "Which one is it, left or right?",
)


def tiny_config(vocab_size: int) -> VilaConfig:
    """Return the configuration of vila-tiny: NVILA's architecture with 7.8 million parameters."""
    tower = SiglipConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=7,  # the last one is not run: VILA reads hidden state -2
        num_attention_heads=3,
    )
    language_model = DecoderConfig(
        architecture="qwen2",
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=vocab_size,
        max_length=CONTEXT,
        max_position_embeddings=CONTEXT,
        attention_bias=True,
        tie_word_embeddings=True,
    )
    return VilaConfig(
        vision_tower=tower,
        projector=ProjectorConfig(
            name="mlp_downsample_2x2_fix", in_size=tower.hidden_size, out_size=language_model.hidden_size
        ),
        language_model=language_model,
        pixels=PixelConfig(size=IMAGE_SIZE),
        preprocess=PreprocessConfig(image_aspect_ratio="resize", num_video_frames=8),
        dtype="bfloat16",
    )


def tokenizer_corpus(sources: Iterable[str] = (*TASKS, *CAPTIONS)) -> Iterator[str]:
    """Yield the text that the tokenizer's merges are learned from: the questions and answers of the drawn world.

    Texts to be read in pictures are left out, so that words in capitals are spelled letter by letter, even unseen ones.
    """
    for name in sources:
        if name in ("word", "number", "caption_text"):
            continue
        for index in range(400):
            sample = make_sample("train", name, index)
            yield f"{sample.question}\n{sample.answer}"
    for line in _SMALL_TALK:
        yield from [line] * 20
    yield from [" ".join(word.lower() for word in words_of("train"))] * 2


def make_tokenizer() -> "PreTrainedTokenizerFast":
    """Train the byte-level BPE tokenizer and give it Qwen2's chat template."""
    from vila_core.chat import JinjaTemplate
    from vila_core.plugins.loader import load_plugins

    tokenizer = train_tokenizer(tokenizer_corpus(), SPECIAL_TOKENS, VOCABULARY, CONTEXT)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    template = load_plugins().chat_templates.get("qwen2")
    assert isinstance(template, JinjaTemplate)
    tokenizer.chat_template = template.source
    return tokenizer


def train_tokenizer(
    corpus: Iterable[str], special_tokens: Sequence[str], vocabulary: int, context: int
) -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE tokenizer of at most `vocabulary` tokens, of which `special_tokens` are the last."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(special_tokens),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, model_max_length=context
    )
    tokenizer.add_tokens(list(special_tokens), special_tokens=True)
    return tokenizer


def make_encoder(tokenizer_folder: Path) -> Encoder:
    """Return the encoder for vila-tiny."""
    from vila_core.plugins.loader import load_plugins

    template = load_plugins().chat_templates.get("qwen2")
    return Encoder(Tokenizer.from_folder(tokenizer_folder), template, TOKENS_PER_PICTURE)


def save_tokenizer(folder: Path) -> None:
    """Write the tokenizer files of vila-tiny to `folder`."""
    write_tokenizer(make_tokenizer(), folder)


def write_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Write a tokenizer's files to `folder`, readable by transformers 4 and 5."""
    tokenizer.save_pretrained(folder)
    # transformers 5 writes a class name that 4 does not know, and stores the template where 4 does not look.
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **({} if tokenizer.chat_template is None else {"chat_template": tokenizer.chat_template}),
    }
    config.pop("backend", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "chat_template.jinja").unlink(missing_ok=True)

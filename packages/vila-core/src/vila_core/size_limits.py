"""Limits on what a config may ask for: far above every published model, far below what hangs or fills a machine.

A number in a checkpoint's config reaches an allocator or a loop, so each is bounded before anything is built. What the
weights' headers say (shapes, numbers of layers) bounds the rest.
"""

MAX_WIDTH = 65_536
"""Hidden size. The widest published language models have 18,432 (PaLM) and 16,384 (Llama 3.1 405B)."""

MAX_INNER_WIDTH = 1_048_576
"""Width of a feed-forward layer. Llama 3.1 405B has 53,248."""

MAX_LAYERS = 1024
"""Building a layer takes milliseconds even without weights. Llama 3.1 405B has 126."""

MAX_HEADS = 1024
"""Attention heads. Llama 3.1 405B and DeepSeek-V3 have 128."""

MAX_HEAD_DIM = 4096
"""Width of a head. Gemma has 256, DeepSeek-V3 576."""

MAX_VOCABULARY = 4_194_304
"""Tokens. Gemma has 262,144."""

MAX_CONTEXT = 2**31 - 1
"""Positions, and tokens back in a sliding window. Llama 4 has 10 million; beyond 31 bits, positions overflow."""

MAX_EXPERTS = 4096
"""Experts of a layer. Kimi K2 has 384; each is a module to build."""

MAX_IMAGE_SIZE = 4096
"""Side of an image, tile or scale in pixels. SigLIP runs at 224 to 512, RADIO up to 2048."""

MAX_PATCH_SIZE = 1024
"""Side of a patch in pixels. Towers have 14 or 16."""

MAX_PATCHES = 16_384
"""Patches of one tile, which attention compares with one another. RADIO at 2048 pixels has 16,384, SigLIP 1024."""

MAX_CHANNELS = 64
"""Channels of an image. Pictures have 3."""

MAX_TOKENS_PER_TOWER = 1024
"""Class, summary and register tokens. RADIO has up to 10."""

MAX_TILES = 128
"""Tiles of one picture. NVILA has 12; a tile of 448 x 448 pixels takes 2.4 MB."""

MAX_SCALES = 8
"""Scales of S2. Published models have 2 and 3."""

MAX_VIDEO_FRAMES = 8192
"""Frames of one video. LongVILA has 2048."""

MAX_FPS = 1000.0
"""Frames per second."""

MAX_TIME_TOKENS = 100_000
"""Tokens of the vocabulary that stand for times. LITA and VILA have 100."""

MAX_POOL_SIZES = 64
"""Passes of the temporal-spatial pooling over a video. LongVILA has 3."""

MAX_ROPE_THETA = 1e15
"""Base of rotary positions. The largest known is 5e8; float32 keeps angles meaningful to about 1e15."""

MAX_ROPE_FACTOR = 1e6
"""Largest factor and parameter of rotary scaling. Published models have up to 64."""

MAX_CODEBOOK = 1_048_576
"""Codes of a codebook. VILA-U has 16,384, Emu3 32,768."""

MAX_CODE_DEPTH = 64
"""Codes of one image position. VILA-U has 4 and 16."""

MAX_DECODER_LEVELS = 8
"""Resolutions of an image decoder, each twice the one before. VQGAN has up to 6."""

MAX_RESIDUAL_BLOCKS = 64
"""Residual blocks at one resolution of an image decoder. VQGAN has 2 or 3."""

MAX_DECODER_CHANNELS = 16_384
"""Channels at one resolution of an image decoder. VQGAN has up to 1024."""

MIN_STD, MAX_STD = 1e-3, 1e3
"""Deviation that pixels are divided by. Published ones lie around 0.25 and 0.5."""

BY_KEY = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), MAX_WIDTH),
    **dict.fromkeys(
        ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "moe_intermediate_size", "shared_expert_intermediate_size"),
        MAX_INNER_WIDTH,
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), MAX_LAYERS),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "n_heads"), MAX_HEADS),
    **dict.fromkeys(("head_dim", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), MAX_HEAD_DIM),
    "vocab_size": MAX_VOCABULARY,
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "original_max_position_embeddings", "sliding_window"),
        MAX_CONTEXT,
    ),
    **dict.fromkeys(
        (
            "num_local_experts", "num_experts", "n_routed_experts", "n_shared_experts", "num_experts_per_tok",
            "moe_num_experts", "num_codebooks",
        ),
        MAX_EXPERTS,
    ),
}  # fmt: skip
"""The limits by the keys that configs of transformers use, at any depth."""

MAX_INTEGER = 2**31 - 1
"""Largest value of every other whole number in a language model's config: ids, counts, periods."""

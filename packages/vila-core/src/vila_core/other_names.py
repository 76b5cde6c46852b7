"""Names by which users of other libraries look for what `Vila` offers."""

from collections.abc import Mapping

OTHER_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("generate_content", "predict", "ask", "query"), "To get an answer, use model.generate(prompt)."),
    **dict.fromkeys(
        ("to", "cuda", "cpu", "half", "float", "bfloat16"),
        "Choose when loading: vila_core.load(…, device='cuda', dtype='bfloat16').",
    ),
    **dict.fromkeys(
        ("eval", "train", "requires_grad_"), "The model is ready for inference; model.network is the module."
    ),
    **dict.fromkeys(
        ("parameters", "named_parameters", "state_dict", "modules", "named_modules", "forward", "num_parameters"),
        "The torch module is model.network.",
    ),
    **dict.fromkeys(("llm", "vision_tower", "mm_projector"), "The parts of the model are in model.network."),
    **dict.fromkeys(("processor", "image_processor"), "Prompts are prepared by model.prepare(prompt)."),
    **dict.fromkeys(("encode", "decode"), "Texts are encoded by model.tokenizer."),
    **dict.fromkeys(("generation_config", "default_generation_config"), "Settings are arguments of model.generate."),
    **dict.fromkeys(
        ("generate_images", "generate_image_content", "draw", "text_to_image"),
        "To draw, use model.generate_image(prompt, n=4).",
    ),
    "from_pretrained": "Models are loaded by vila_core.load('owner/name').",
    "save_pretrained": "Checkpoints are written by the program `vila convert`.",
    "batch_generate": "For several prompts, use model.generate_batch(prompts).",
    "generate_stream": "For an answer piece by piece, use model.stream(prompt).",
    "chat_template": "The template is model.template.",
}
"""Names of other libraries -> what to use instead."""

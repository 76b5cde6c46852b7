"""Chooses the chat template of a model: the one that is asked for, the checkpoint's, or the tokenizer's."""

from vila_core.chat import ChatTemplate, JinjaTemplate, Turn
from vila_core.errors import ConfigError, PromptError
from vila_core.plugins.loader import load_plugins
from vila_core.tokenizer import Tokenizer


def choose_template(requested: str | None, stated: str | None, tokenizer: Tokenizer) -> ChatTemplate:
    """Return the template to use.

    Args:
        requested: name of a registered template, "auto" for the tokenizer's template, or None for the checkpoint's.
        stated: the same from the checkpoint's config; None if it does not say.
        tokenizer: the tokenizer of the checkpoint.

    Raises:
        ConfigError: the template is unknown or contradicts the checkpoint: it formats conversations differently from
            the stated template, or ends answers with a token that the tokenizer does not have.
        PromptError: the tokenizer's template is needed, but it has none.
    """
    template = _find_template(requested or stated or "auto", tokenizer)
    states_template = stated is not None and (stated != "auto" or tokenizer.chat_template is not None)
    if requested is not None and stated is not None and states_template:
        probe = [Turn("user", "question"), Turn("assistant", "answer"), Turn("user", "question")]
        own = _find_template(stated, tokenizer)
        if template.render(probe, tokenizer.special_tokens) != own.render(probe, tokenizer.special_tokens):
            raise ConfigError(
                f"Chat template '{requested}' contradicts this checkpoint, which was trained with '{stated}'. "
                "Omit chat_template (--conv-mode) to use the checkpoint's own."
            )
    if template.end_token is not None and not tokenizer.is_one_token(template.end_token):
        raise ConfigError(
            f"Chat template '{template.name}' ends an answer with '{template.end_token}', which is not a token of this "
            "checkpoint: the model was trained with another template. "
            "Omit chat_template (--conv-mode) to use the checkpoint's own."
        )
    return template


def _find_template(name: str, tokenizer: Tokenizer) -> ChatTemplate:
    registry = load_plugins().chat_templates
    if name != "auto":
        return registry.get(name)
    if tokenizer.chat_template is None:
        raise PromptError(
            "This checkpoint does not say which chat template it uses. Choose one with chat_template (--conv-mode): "
            f"{', '.join(registry.names())}. VILA-1.5 3B and 13B use vicuna_v1, Llama-3-VILA1.5-8B uses llama_3, "
            "VILA1.5-40B uses hermes-2."
        )
    return JinjaTemplate("auto", tokenizer.chat_template)

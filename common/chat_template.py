"""The chat template: how the turns of a conversation become the text that a model is taught and asked with.

There is one, ChatML, written with the BOS and EOS of the tokenizer. Fine-tuning, generation, the exported folder and
GGUF files take it from here, so that a model is asked as it was taught. A folder of another origin may bring its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import UserError
from common.files import printable, read_json, read_text

FILE_NAME = "chat_template.jinja"
_MOST_BYTES = 2**20  # of a template, or of a tokenizer_config.json that holds one


def chatml(bos: str, eos: str) -> str:
    """Return the Jinja template `<bos>role\\ncontent<eos>\\n` of every turn, with the given tokens as its marks.

    A conversation begins with BOS, as a document does: encode it without adding special tokens. With
    `add_generation_prompt` it ends where the assistant's words begin.
    """
    begin, end = (_quoted(token) for token in (bos, eos))
    return (
        "{%- for message in messages -%}\n"
        f"{{{{- {begin} + message['role'] + '\\n' + message['content'] + {end} + '\\n' -}}}}\n"
        "{%- endfor -%}\n"
        "{%- if add_generation_prompt -%}\n"
        f"{{{{- {begin} + 'assistant\\n' -}}}}\n"
        "{%- endif -%}\n"
    )


def _quoted(token: str) -> str:
    return "'" + token.replace("\\", "\\\\").replace("'", "\\'") + "'"


def read_chat_template(folder: Path) -> str | None:
    """Return the template in a model's folder, from where transformers reads it too; None if there is none.

    UserError if the file that should hold it cannot be read.
    """
    own, config = folder / FILE_NAME, folder / "tokenizer_config.json"
    path = own if own.is_file() else config
    if not path.is_file():
        return None
    try:
        if path is own:
            return read_text(own, _MOST_BYTES)
        settings = read_json(config, 64 * _MOST_BYTES)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no chat template can be read from it ({printable(error)}); restore it") from None
    template = settings.get("chat_template") if isinstance(settings, dict) else None
    if isinstance(template, list):  # several by name, as tokenizers with tools have them
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    add_generation_prompt: bool = False,
    bos: str = "",
    eos: str = "",
) -> str:
    """Return the text of a conversation, each message with "role" and "content", as transformers renders it.

    `bos` and `eos` are for templates of other folders, which may ask for `bos_token`. UserError if the template is
    broken or refuses the conversation.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # a template is code of whoever made the folder

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(template).render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            bos_token=bos,
            eos_token=eos,
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise UserError(f"the chat template cannot render the conversation: {printable(error)}") from None

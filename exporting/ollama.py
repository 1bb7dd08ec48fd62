"""The Modelfile that Ollama makes a model from: it takes Qwen3 only as GGUF, and its template is not the file's own."""

from __future__ import annotations

from pathlib import Path

from common.files import read_object
from model import ModelConfig
from model.hf import GENERATION_CONFIG
from model.inference.sampling import SamplingParameters

_PARAMETERS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "repetition_penalty": "repeat_penalty",
}  # by their names in generation_config.json
_CONTINUES = (
    "# The turns of a chat. For a model that was taught no chats, and continues text instead:",
    '# TEMPLATE "{{ .Prompt }}"',
)


def modelfile(gguf_name: str, folder: Path, config: ModelConfig, marks: tuple[str, str], chats: bool) -> str:
    """Return the Modelfile for a GGUF file beside it, with the sampling of `folder` or else that of generate.py.

    `chats` says whether the model was taught to answer; an answer has to use the words of its question, so nothing is
    penalised then, as with `--chat`. Ollama puts BOS in front of what the template makes, so the template leaves out
    that of the first turn.
    """
    bos, eos = marks
    defaults = vars(SamplingParameters()) | ({"repetition_penalty": 1.0} if chats else {})
    chosen = {name: value for name, value in read_object(folder / GENERATION_CONFIG).items() if name in _PARAMETERS}
    if not chosen:
        chosen = {name: defaults[name] for name in _PARAMETERS}
    parameters = [f"PARAMETER {_PARAMETERS[name]} {value:g}" for name, value in chosen.items()]
    return "\n".join(
        [
            "# ollama create NAME -f THIS_FILE",
            f"FROM ./{gguf_name}",
            *([] if chats else _CONTINUES),
            f'TEMPLATE """{{{{- range $i, $_ := .Messages }}}}{{{{ if $i }}}}{bos}{{{{ end }}}}{{{{ .Role }}}}',
            f"{{{{ .Content }}}}{eos}",
            f"{{{{ end }}}}{bos}assistant",
            '"""',
            f'PARAMETER stop "{eos}"',
            f"PARAMETER num_ctx {config.max_position_embeddings}",
            "PARAMETER repeat_last_n -1",
            *parameters,
            "",
        ]
    )

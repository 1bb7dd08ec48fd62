"""The model that is judged: one of ours, or any causal language model in a Hugging Face folder.

Shapes in names: B batch, T tokens, V vocabulary, E experts.
"""

from __future__ import annotations

import contextlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from common.errors import UserError
from corpus.tokenizer import load_tokenizer
from evaluation.held_out_prompts import DecodingSettings, Generator, make_generator
from model import CausalLM, GenerationError, ModelConfigError, load_model, pad_left

# What a tokenizer without a vocabulary makes one unknown token of, or nothing
PROBE = "A parrot, 一只鹦鹉。"
REMOTE_CODE = "needs code of its own to run, which is never executed here: give a model that transformers knows"


class Subject(ABC):
    """A model with its tokenizer, for measuring: nothing of it is changed.

    `begin_id` is None where documents do not start with a mark, `end_id` is -1 where they end without one, and `pad_id`
    is None where no token is for padding alone.
    """

    kind: str
    path: Path
    vocab_size: int
    parameters: int
    active_parameters: int
    positions: int
    begin_id: int | None
    end_id: int
    pad_id: int | None
    device: torch.device
    default_decoding: DecodingSettings | None = None  # what the folder itself asks for, or its library falls back to
    experts_per_token = 1
    masks_documents = False
    """Whether packed rows may be given to `logits`, because the model takes them as it did in training."""

    @abstractmethod
    def logits(self, ids_BT: Tensor) -> Tensor:
        """(B, T) packed rows -> (B, T, V) scores of the next token, fp32."""

    @abstractmethod
    def generate(self, settings: DecodingSettings) -> Generator:
        """A function that continues prompts with these settings; GenerationError where the model is not finite."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without marks."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of some ids, marks left out."""

    @abstractmethod
    def gates(self) -> list[tuple[nn.Module, Tensor]]:
        """Of each expert layer, first block first: a module that gets the router's input, and the router's weight
        (E, hidden). Empty for a dense model."""

    @contextlib.contextmanager
    def watch_router(self) -> Iterator[list[list[Tensor]]]:
        """Collects, for each gate, the router probabilities (tokens, E) of the passes made inside."""
        gates = self.gates()
        seen: list[list[Tensor]] = [[] for _ in gates]

        def hook(index: int, weight_EH: Tensor) -> Callable[[nn.Module, tuple], None]:
            def keep(_module: nn.Module, args: tuple) -> None:
                # from its input: what a router gives back differs from family to family
                scores = F.linear(args[0].detach().float().reshape(-1, weight_EH.shape[1]), weight_EH.float())
                seen[index].append(scores.softmax(-1).cpu())

            return keep

        handles = [
            module.register_forward_pre_hook(hook(index, weight.detach()))
            for index, (module, weight) in enumerate(gates)
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


class OwnModel(Subject):
    """A folder that this project saved."""

    kind = "run"
    masks_documents = True

    def __init__(self, folder: Path, device: str, kind: str = "run") -> None:
        self.path, self.kind = folder, kind
        try:
            self.model: CausalLM = load_model(folder, device=device, dtype=torch.float32 if device == "cpu" else None)
        except ModelConfigError as error:
            raise UserError(str(error)) from None
        if not (folder / "tokenizer.json").is_file():
            raise UserError(f"{folder / 'tokenizer.json'} is missing: copy it there from the folder of the corpus")
        self.tokenizer: Tokenizer = load_tokenizer(folder / "tokenizer.json")
        config = self.model.config
        self.vocab_size, self.positions = config.vocab_size, config.max_position_embeddings
        self.begin_id, self.end_id = config.bos_token_id, config.eos_token_id
        self.pad_id = config.pad_token_id if config.pad_token_id not in (self.begin_id, self.end_id) else None
        self.parameters = sum(p.numel() for p in self.model.parameters())
        idle = config.num_experts - config.num_experts_per_tok if config.use_moe else 0
        self.active_parameters = (
            self.parameters - idle * config.num_hidden_layers * 3 * config.hidden_size * config.moe_intermediate_size
        )
        self.experts_per_token = config.num_experts_per_tok
        self.device = torch.device(device)

    @torch.inference_mode()
    def logits(self, ids_BT: Tensor) -> Tensor:
        """Documents packed into a row do not see each other, if the model was trained so."""
        return self.model.packed_logits(ids_BT.to(self.device)).float()

    def generate(self, settings: DecodingSettings) -> Generator:
        """See Subject."""
        return make_generator(self.model, settings)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """See Subject."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """See Subject."""
        return self.tokenizer.decode(list(ids))

    def gates(self) -> list[tuple[nn.Module, Tensor]]:
        """See Subject."""
        return [(block.mlp, block.mlp.gate.weight) for block in self.model.model.layers if hasattr(block.mlp, "gate")]


class HuggingFaceModel(Subject):
    """Any folder that transformers' AutoModelForCausalLM loads without code of its own."""

    kind = "huggingface"

    def __init__(self, folder: Path, device: str) -> None:
        self.path, self.device = folder, torch.device(device)
        self.model, self.tokenizer = _load_transformers(folder)
        self.model.eval().to(self.device)
        config, tokenizer = self.model.config, self.tokenizer
        text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
        self._embeddings = self.model.get_input_embeddings().weight.shape[0]
        self.vocab_size = max(int(text_config.vocab_size), len(tokenizer))
        self.positions = int(getattr(text_config, "max_position_embeddings", None) or 2048)
        end = tokenizer.eos_token_id
        self.end_id = -1 if end is None else int(end)
        begin = tokenizer.bos_token_id
        wears_begin = begin is not None and begin != end and tokenizer("a")["input_ids"][:1] == [begin]
        own = (folder / "config.json").is_file() and "bufudu" in _json(folder / "config.json")
        self.begin_id = int(begin) if begin is not None and (wears_begin or own) else None
        pad = tokenizer.pad_token_id
        self.pad_id = None if pad is None or pad in (self.end_id, begin) else int(pad)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.active_parameters = self.parameters
        self.experts_per_token = int(getattr(text_config, "num_experts_per_tok", None) or 1)
        saved = self.model.generation_config
        self.default_decoding = (
            DecodingSettings(
                float(saved.temperature or 1.0), float(saved.top_p or 1.0), float(saved.repetition_penalty or 1.0)
            )
            if saved.do_sample
            else DecodingSettings(0.0, 1.0, float(saved.repetition_penalty or 1.0))
        )

    @torch.inference_mode()
    def logits(self, ids_BT: Tensor) -> Tensor:
        """See Subject."""
        return self.model(input_ids=ids_BT.to(self.device), use_cache=False).logits.float()

    def generate(self, settings: DecodingSettings) -> Generator:
        """See Subject."""
        from transformers import GenerationConfig

        pad = self.pad_id if self.pad_id is not None else max(self.end_id, 0)
        sampling = (
            {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0} if not settings.greedy else {}
        )
        config = GenerationConfig(
            do_sample=not settings.greedy,
            repetition_penalty=settings.repetition_penalty,
            eos_token_id=self.end_id if self.end_id >= 0 else None,
            pad_token_id=pad,
            **sampling,
        )
        self.model.generation_config = config  # the folder's own would fill in what is not given

        def generate(prompts: list[list[int]], *, new_tokens: int, seed: int, first_row: int) -> list[list[int]]:
            ids, mask = pad_left(prompts, pad)
            torch.manual_seed(seed + first_row)
            config.max_new_tokens = new_tokens
            try:
                with torch.inference_mode():
                    output = self.model.generate(
                        ids.to(self.device), attention_mask=mask.to(self.device), generation_config=config
                    )
            except RuntimeError as error:  # "probability tensor contains either inf, nan or element < 0"
                raise GenerationError(f"the model cannot write: {str(error).splitlines()[0]}") from None
            return output[:, ids.shape[1] :].tolist()

        return generate

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """See Subject. UserError where the model has no embedding for an id."""
        found = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        largest, rows = max((max(ids, default=0) for ids in found), default=0), self._embeddings
        if largest >= rows:
            raise UserError(
                f"{self.path}: its tokenizer gives the id {largest:,} and its model has {rows:,} "
                "embeddings: put the tokenizer's files into the folder that belong to these weights"
            )
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """See Subject."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def gates(self) -> list[tuple[nn.Module, Tensor]]:
        """Routers by the name that the Qwen, Mixtral, DeepSeek and OLMoE families give them."""
        experts = getattr(self.model.config, "num_experts", None) or getattr(self.model.config, "num_local_experts", 0)
        return [
            (module, module.weight)
            for name, module in self.model.named_modules()
            if experts
            and name.endswith((".gate", ".router"))
            and getattr(module, "weight", None) is not None
            and module.weight.ndim == 2
            and module.weight.shape[0] == experts
        ]


def load_subject(folder: Path, device: str = "auto", kind: str = "run") -> Subject:
    """The model in `folder`; UserError with one sentence if there is none that can be loaded."""
    device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()  # "meta" holds no numbers
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts
        raise UserError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from None
    config = _json(folder / "config.json")
    if not config:
        raise UserError(f"{folder / 'config.json'} is no JSON object that can be read: copy the model's folder again")
    if "bufudu" in config:
        return OwnModel(folder, device, kind)
    return HuggingFaceModel(folder, device)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _load_transformers(folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer) in fp32; neither network nor the folder's code is used."""
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_OFFLINE", "1"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ):
        os.environ.setdefault(name, value)
    try:
        import transformers
    except ImportError:
        raise UserError(
            f"{folder} is not a model of this project, and others need the transformers library: "
            "pip install transformers"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = _json(folder / "config.json")
    if "auto_map" in config and config.get("model_type") not in transformers.CONFIG_MAPPING:
        raise UserError(f"{folder}: the model {REMOTE_CODE}")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever the many tokenizer classes raise
        raise UserError(
            f"{folder}: the tokenizer cannot be loaded ({_short(error)}): put its files into the folder"
        ) from None
    if len(set(tokenizer(PROBE, add_special_tokens=False)["input_ids"])) < 2:
        raise UserError(
            f"{folder}: its tokenizer has no vocabulary: put its files (tokenizer.json and the like) into the folder"
        )
    try:
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:
        raise UserError(
            f"{folder}: transformers cannot load it as a causal language model ({_short(error)}): check "
            "that config.json and the weights belong together"
        ) from None
    # transformers draws them at random, and says so in a warning
    if missing := sorted(loading["missing_keys"]):
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise UserError(
            f"{folder}: the weights lack {missing[0]}{more}, which config.json asks for: copy all files of "
            "the model again"
        )
    return model, tokenizer


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

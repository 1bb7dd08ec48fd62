"""The model under test: one of ours, or any causal language model in a Hugging Face folder.

Shapes in names: B batch, T tokens, V vocabulary, S tokens of all rows, E experts, H hidden size.
"""

from __future__ import annotations

import contextlib
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
from common.files import read_object
from corpus.tokenizer import load_tokenizer
from evaluation.held_out_prompts import DecodingSettings, Generator, make_generator
from model import CausalLM, GenerationError, ModelConfigError, load_model, pad_left
from model.moe import LocalMoE

# A tokenizer without a vocabulary turns this into one unknown token, or nothing.
TOKENIZER_CHECK = "A parrot, 一只鹦鹉。"


class ModelUnderTest(ABC):
    """A model with its tokenizer, which is measured and never changed.

    `bos_id` is None if documents do not start with a BOS, `eos_id` is -1 if they do not end with an EOS, and `pad_id`
    is None if no token is for padding alone.
    """

    vocab_size: int
    parameters: int
    active_parameters: int
    positions: int
    bos_id: int | None
    eos_id: int
    pad_id: int | None
    device: torch.device
    default_decoding: DecodingSettings | None = None
    """What the folder itself asks for, or its library falls back to."""
    experts_per_token = 1
    masks_documents = False
    """Whether `logits` takes packed rows, because attention stays within a document as it did in training."""

    @abstractmethod
    def logits(self, ids_BT: Tensor) -> Tensor:
        """Return (B, T, V) logits of the next token in fp32."""

    @abstractmethod
    def generator(self, settings: DecodingSettings) -> Generator:
        """Return a Generator with these settings; it raises GenerationError if the output is not finite."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without BOS and EOS."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids, without special tokens."""

    @abstractmethod
    def routers(self) -> list[tuple[nn.Module, Tensor]]:
        """Return for each expert layer a module that gets the router's input, and the router's weight (E, H)."""

    @contextlib.contextmanager
    def record_router_probabilities(self) -> Iterator[list[list[Tensor]]]:
        """Collect for each expert layer the router probabilities (S, E) of the forward passes made inside."""
        routers = self.routers()
        recorded: list[list[Tensor]] = [[] for _ in routers]

        def hook(layer: int, weight_EH: Tensor) -> Callable[[nn.Module, tuple], None]:
            def record(_module: nn.Module, args: tuple) -> None:
                # from the router's input: what it returns differs between model families
                logits_SE = F.linear(args[0].detach().float().reshape(-1, weight_EH.shape[1]), weight_EH.float())
                recorded[layer].append(logits_SE.softmax(-1).cpu())

            return record

        with contextlib.ExitStack() as handles:
            for layer, (module, weight_EH) in enumerate(routers):
                handles.enter_context(module.register_forward_pre_hook(hook(layer, weight_EH.detach())))
            yield recorded


class OwnModel(ModelUnderTest):
    """A folder that this project saved."""

    masks_documents = True

    def __init__(self, folder: Path, device: str) -> None:
        try:
            dtype = torch.float32 if device == "cpu" else None
            self.network: CausalLM = load_model(folder, device=device, dtype=dtype)
        except ModelConfigError as error:
            raise UserError(str(error)) from None
        if not (folder / "tokenizer.json").is_file():
            raise UserError(f"{folder / 'tokenizer.json'} is missing: copy it there from the folder of the corpus")
        self.tokenizer: Tokenizer = load_tokenizer(folder / "tokenizer.json")
        self.device = torch.device(device)
        config = self.network.config
        self.vocab_size, self.positions = config.vocab_size, config.max_position_embeddings
        self.bos_id, self.eos_id = config.bos_token_id, config.eos_token_id
        self.pad_id = config.pad_token_id if config.pad_token_id not in (self.bos_id, self.eos_id) else None
        self.experts_per_token = config.num_experts_per_tok
        self.parameters = sum(p.numel() for p in self.network.parameters())
        idle = config.num_experts - config.num_experts_per_tok if config.use_moe else 0
        expert = 3 * config.hidden_size * config.moe_intermediate_size
        self.active_parameters = self.parameters - idle * config.num_hidden_layers * expert

    @torch.inference_mode()
    def logits(self, ids_BT: Tensor) -> Tensor:
        """Attention stays within a document, if the model was trained so."""
        return self.network.packed_logits(ids_BT.to(self.device)).float()

    def generator(self, settings: DecodingSettings) -> Generator:
        """See ModelUnderTest."""
        return make_generator(self.network, settings)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """See ModelUnderTest."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """See ModelUnderTest."""
        return self.tokenizer.decode(list(ids))

    def routers(self) -> list[tuple[nn.Module, Tensor]]:
        """See ModelUnderTest."""
        experts = [module for module in self.network.modules() if isinstance(module, LocalMoE)]
        return [(layer, layer.gate.weight) for layer in experts]


class HuggingFaceModel(ModelUnderTest):
    """Any folder that transformers' AutoModelForCausalLM loads without code of its own."""

    def __init__(self, folder: Path, device: str) -> None:
        self.path, self.device = folder, torch.device(device)
        self.tokenizer, self.network = _load_transformers(folder)
        self.network.eval().to(self.device)
        self._check_causal()
        config, tokenizer = self.network.config, self.tokenizer
        text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
        self.vocab_size = max(int(text_config.vocab_size), len(tokenizer))
        self.positions = int(getattr(text_config, "max_position_embeddings", None) or 2048)
        bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        adds_bos = bos is not None and bos != eos and tokenizer("a")["input_ids"][:1] == [bos]
        self.bos_id = int(bos) if bos is not None and (adds_bos or _is_ours(folder)) else None
        self.eos_id = -1 if eos is None else int(eos)
        self.pad_id = None if pad is None or pad in (eos, bos) else int(pad)
        self.parameters = self.active_parameters = sum(p.numel() for p in self.network.parameters())
        self.experts_per_token = int(getattr(text_config, "num_experts_per_tok", None) or 1)
        saved = self.network.generation_config
        penalty = float(saved.repetition_penalty or 1.0)
        self.default_decoding = (
            DecodingSettings(float(saved.temperature or 1.0), float(saved.top_p or 1.0), penalty)
            if saved.do_sample
            else DecodingSettings(0.0, 1.0, penalty)
        )

    @torch.inference_mode()
    def _check_causal(self) -> None:
        """Raise UserError for an encoder, which transformers loads as a causal model if it is asked to."""
        ids = torch.arange(8, device=self.device)[None] % self.network.get_input_embeddings().weight.shape[0]
        other = ids.clone()
        other[0, -1] = ids[0, 0]
        first, second = (self.network(input_ids=each, use_cache=False).logits[:, :-1].float() for each in (ids, other))
        if not torch.allclose(first, second, rtol=1e-2, atol=1e-2 * float(first.abs().max())):
            raise UserError(
                f"{self.path}: the model looks at the tokens that follow, as encoders such as BERT do: give a causal "
                "language model, which predicts the next token from those before it"
            )

    @torch.inference_mode()
    def logits(self, ids_BT: Tensor) -> Tensor:
        """See ModelUnderTest."""
        return self.network(input_ids=ids_BT.to(self.device), use_cache=False).logits.float()

    def generator(self, settings: DecodingSettings) -> Generator:
        """See ModelUnderTest."""
        from transformers import GenerationConfig

        pad = self.pad_id if self.pad_id is not None else max(self.eos_id, 0)
        sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
        config = GenerationConfig(
            do_sample=not settings.greedy,
            repetition_penalty=settings.repetition_penalty,
            eos_token_id=self.eos_id if self.eos_id >= 0 else None,
            pad_token_id=pad,
            **({} if settings.greedy else sampling),
        )
        self.network.generation_config = config  # the folder's own would fill in what is not given

        @torch.inference_mode()
        def generate(prompts: list[list[int]], *, new_tokens: int, seed: int, first_row: int) -> list[list[int]]:
            ids, mask = (part.to(self.device) for part in pad_left(prompts, pad))
            torch.manual_seed(seed + first_row)
            config.max_new_tokens = new_tokens
            try:
                output = self.network.generate(ids, attention_mask=mask, generation_config=config)
            except RuntimeError as error:  # "probability tensor contains either inf, nan or element < 0"
                raise GenerationError(f"the model cannot generate text: {str(error).splitlines()[0]}") from None
            return output[:, ids.shape[1] :].tolist()

        return generate

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text; UserError if the model has no embedding for one of them."""
        found = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        largest = max((max(ids, default=0) for ids in found), default=0)
        embeddings = self.network.get_input_embeddings().weight.shape[0]
        if largest >= embeddings:
            raise UserError(
                f"{self.path}: the tokenizer gives the id {largest:,}, but the model has only "
                f"{embeddings:,} embeddings: copy the tokenizer's files that belong to these weights into the folder"
            )
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """See ModelUnderTest."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def routers(self) -> list[tuple[nn.Module, Tensor]]:
        """Find the routers by the name that the Qwen, Mixtral, DeepSeek and OLMoE families give them."""
        config = self.network.config
        experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", 0)
        named = [module for name, module in self.network.named_modules() if name.endswith((".gate", ".router"))]
        weights = [(module, getattr(module, "weight", None)) for module in named if experts]
        return [
            (module, weight) for module, weight in weights if weight is not None and weight.shape[:-1] == (experts,)
        ]


def load_model_under_test(folder: Path, device: str = "auto") -> ModelUnderTest:
    """Load the model in `folder`; UserError with one sentence if there is none that can be loaded."""
    device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()  # "meta" holds no numbers
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts
        raise UserError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from None
    if not read_object(folder / "config.json"):
        raise UserError(f"{folder / 'config.json'} is no JSON object that can be read: copy the model's folder again")
    if not _is_ours(folder):
        return HuggingFaceModel(folder, device)
    try:
        return OwnModel(folder, device)
    except UserError:
        if "transformers_version" not in read_object(folder / "config.json"):
            raise
        return HuggingFaceModel(folder, device)  # saved by transformers, which may have changed more than its sizes


def _is_ours(folder: Path) -> bool:
    return "bufudu" in read_object(folder / "config.json")


def _load_transformers(folder: Path) -> tuple[Any, Any]:
    """Return (tokenizer, model in fp32), using neither the network nor code from the folder."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import transformers
    except ImportError:
        raise UserError(
            f"{folder} is not a model of this project, and other models need the transformers library: "
            "pip install transformers"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = read_object(folder / "config.json")
    if "auto_map" in config and config.get("model_type") not in transformers.CONFIG_MAPPING:
        raise UserError(
            f"{folder}: the model needs code of its own, which is never executed here: give a model that transformers "
            "knows"
        )
    local: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
    except Exception as error:  # whatever the many tokenizer classes raise
        raise UserError(
            f"{folder}: the tokenizer cannot be loaded ({_short(error)}): copy its files into the folder"
        ) from None
    if len(set(tokenizer(TOKENIZER_CHECK, add_special_tokens=False)["input_ids"])) < 2:
        raise UserError(
            f"{folder}: the tokenizer has no vocabulary: copy its files (tokenizer.json and the like) into the folder"
        )
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **local
        )
        model, loading = loaded
    except Exception as error:
        raise UserError(
            f"{folder}: transformers cannot load it as a causal language model ({_short(error)}): check that "
            "config.json and the weights belong together"
        ) from None
    if missing := sorted(loading["missing_keys"]):  # transformers draws them at random, with no more than a warning
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise UserError(
            f"{folder}: the weights lack {missing[0]}{more}, which config.json asks for: copy all files of the model "
            "again"
        )
    return tokenizer, model


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

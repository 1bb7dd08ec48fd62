"""The model under test: one of ours, or any causal language model in a Hugging Face folder.

Shapes in names: B batch, T tokens, V vocabulary, E experts, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.files import read_object
from evaluation.held_out_prompts import DecodingSettings, Generator, make_generator
from evaluation.opened_model import open_own, open_with_transformers
from model import GenerationError, pad_left
from model.moe import LocalMoE


@dataclass(frozen=True)
class ModelUnderTest:
    """A model with its tokenizer, which is measured and never changed."""

    network: Any
    """A CausalLM of ours, or one of transformers."""
    device: torch.device
    vocab_size: int
    parameters: int
    active_parameters: int
    positions: int
    bos_id: int | None
    """None if documents do not start with a BOS."""
    eos_id: int
    """-1 if they do not end with an EOS."""
    pad_id: int | None
    """None if no token is for padding alone."""
    logits: Callable[[Tensor], Tensor]
    """From ids (B, T) to logits (B, T, V) of the next token in fp32."""
    generator: Callable[[DecodingSettings], Generator]
    """The Generator raises GenerationError if the output is not finite."""
    encode: Callable[[Sequence[str]], list[list[int]]]
    """To the ids of each text, without BOS and EOS."""
    decode: Callable[[Sequence[int]], str]
    """To the text of some ids, without special tokens."""
    routers: list[tuple[nn.Module, Tensor]]
    """For each expert layer a module that gets the router's input, and the router's weight (E, H)."""
    experts_per_token: int
    default_decoding: DecodingSettings | None = None
    """What the folder itself asks for, or its library falls back to."""
    masks_documents: bool = False
    """Whether `logits` takes packed rows, because attention stays within a document as it did in training."""

    @property
    def is_fast(self) -> bool:
        """Whether there is time for all that could be measured."""
        return self.active_parameters < 2e8 or self.device.type != "cpu"


def load_model_under_test(folder: Path, device: str = "auto") -> ModelUnderTest:
    """Load the model in `folder`; UserError with one sentence if there is none that can be loaded."""
    device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()  # "meta" holds no numbers
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts
        raise UserError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from None
    config = read_object(folder / "config.json")
    if not config:
        raise UserError(f"{folder / 'config.json'} is no JSON object that can be read: copy the model's folder again")
    if "bufudu" in config:
        try:
            return _own_model(folder, device)
        except UserError:
            # transformers, which may have changed more than its sizes, saves it with its version
            if "transformers_version" not in config:
                raise
    return _hugging_face_model(folder, torch.device(device), is_ours="bufudu" in config)


def _own_model(folder: Path, device: str) -> ModelUnderTest:
    network, tokenizer = open_own(folder, device, torch.float32 if device == "cpu" else None)
    config = network.config
    parameters = sum(p.numel() for p in network.parameters())
    idle = config.num_experts - config.num_experts_per_tok if config.use_moe else 0
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    layers = [module for module in network.modules() if isinstance(module, LocalMoE)]
    return ModelUnderTest(
        network=network,
        device=torch.device(device),
        vocab_size=config.vocab_size,
        parameters=parameters,
        active_parameters=parameters - idle * config.num_hidden_layers * expert,
        positions=config.max_position_embeddings,
        bos_id=config.bos_token_id,
        eos_id=config.eos_token_id,
        pad_id=config.pad_token_id if config.pad_token_id not in (config.bos_token_id, config.eos_token_id) else None,
        logits=torch.inference_mode()(lambda ids_BT: network.packed_logits(ids_BT.to(device)).float()),
        generator=lambda settings: make_generator(network, settings),
        encode=lambda texts: [found.ids for found in tokenizer.encode_batch(list(texts), add_special_tokens=False)],
        decode=lambda ids: tokenizer.decode(list(ids)),
        routers=[(layer, layer.gate.weight) for layer in layers],
        experts_per_token=config.num_experts_per_tok,
        masks_documents=True,
    )


def _hugging_face_model(folder: Path, device: torch.device, is_ours: bool) -> ModelUnderTest:
    """Return any model that transformers' AutoModelForCausalLM loads without code of its own."""
    network, tokenizer, missing = open_with_transformers(folder)
    if missing:  # transformers draws them at random, with no more than a warning
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise UserError(
            f"{folder}: the weights lack {missing[0]}{more}, which config.json asks for: copy all files of the model "
            "again"
        )
    network.to(device)

    @torch.inference_mode()
    def logits(ids_BT: Tensor) -> Tensor:
        return network(input_ids=ids_BT.to(device), use_cache=False).logits.float()

    embeddings = network.get_input_embeddings().weight.shape[0]
    _check_causal(folder, logits, embeddings)
    config = network.config.get_text_config()
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    adds_bos = bos is not None and bos != eos and tokenizer("a")["input_ids"][:1] == [bos]
    pad_id = None if pad in (None, eos, bos) else int(pad)
    parameters = sum(p.numel() for p in network.parameters())
    saved = network.generation_config
    temperature, top_p = (saved.temperature or 1.0, saved.top_p or 1.0) if saved.do_sample else (0.0, 1.0)
    return ModelUnderTest(
        network=network,
        device=device,
        vocab_size=max(int(config.vocab_size), len(tokenizer)),
        parameters=parameters,
        active_parameters=parameters,
        positions=int(getattr(config, "max_position_embeddings", None) or 2048),
        bos_id=int(bos) if bos is not None and (adds_bos or is_ours) else None,
        eos_id=-1 if eos is None else int(eos),
        pad_id=pad_id,
        logits=logits,
        generator=lambda settings: _hugging_face_generator(network, settings, eos, pad_id, device),
        encode=lambda texts: _encode(folder, tokenizer, texts, embeddings),
        decode=lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True),
        routers=_routers(network),
        experts_per_token=int(getattr(config, "num_experts_per_tok", None) or 1),
        default_decoding=DecodingSettings(float(temperature), float(top_p), float(saved.repetition_penalty or 1.0)),
    )


def _check_causal(folder: Path, logits: Callable[[Tensor], Tensor], embeddings: int) -> None:
    """Raise UserError for an encoder, which transformers loads as a causal model if it is asked to."""
    ids = torch.arange(8)[None] % embeddings
    other = ids.clone()
    other[0, -1] = ids[0, 0]
    first, second = (logits(each)[:, :-1] for each in (ids, other))
    if not torch.allclose(first, second, rtol=1e-2, atol=1e-2 * float(first.abs().max())):
        raise UserError(
            f"{folder}: the model looks at the tokens that follow, as encoders such as BERT do: give a causal language "
            "model, which predicts the next token from those before it"
        )


def _hugging_face_generator(
    network: Any, settings: DecodingSettings, eos_id: int | None, pad_id: int | None, device: torch.device
) -> Generator:
    from transformers import GenerationConfig

    pad = pad_id if pad_id is not None else eos_id or 0
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    config = GenerationConfig(
        do_sample=not settings.greedy,
        repetition_penalty=settings.repetition_penalty,
        eos_token_id=eos_id,
        pad_token_id=pad,
        **({} if settings.greedy else sampling),
    )
    network.generation_config = config  # the folder's own would fill in what is not given

    @torch.inference_mode()
    def generate(prompts: list[list[int]], *, new_tokens: int, seed: int, first_row: int) -> list[list[int]]:
        ids, mask = (part.to(device) for part in pad_left(prompts, pad))
        torch.manual_seed(seed + first_row)
        config.max_new_tokens = new_tokens
        try:
            output = network.generate(ids, attention_mask=mask, generation_config=config)
        except RuntimeError as error:  # "probability tensor contains either inf, nan or element < 0"
            raise GenerationError(f"the model cannot generate text: {str(error).splitlines()[0]}") from None
        return output[:, ids.shape[1] :].tolist()

    return generate


def _encode(folder: Path, tokenizer: Any, texts: Sequence[str], embeddings: int) -> list[list[int]]:
    """Return the ids of each text; UserError if the model has no embedding for one of them."""
    found = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    largest = max((max(ids, default=0) for ids in found), default=0)
    if largest >= embeddings:
        raise UserError(
            f"{folder}: the tokenizer gives the id {largest:,}, but the model has only {embeddings:,} embeddings: copy "
            "the tokenizer's files that belong to these weights into the folder"
        )
    return found


def _routers(network: Any) -> list[tuple[nn.Module, Tensor]]:
    """Find the routers by the name that the Qwen, Mixtral, DeepSeek and OLMoE families give them."""
    config = network.config
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", 0)
    named = [module for name, module in network.named_modules() if name.endswith((".gate", ".router"))]
    weights = [(module, getattr(module, "weight", None)) for module in named if experts]
    return [(module, weight) for module, weight in weights if weight is not None and weight.shape[:-1] == (experts,)]

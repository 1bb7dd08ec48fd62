"""The programs that a model is served with, each behind the same few calls; ours is what the others are measured by.

Shapes in names: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import UserError
from common.files import printable
from corpus.encoding import as_documents, encode_texts
from evaluation.opened_model import open_own, open_with_transformers
from exporting.gguf_file import read_gguf
from exporting.libraries import library
from exporting.verification.structure import file_faults, file_type, folder_faults, stored_type, stored_weights
from model import CausalLM, ModelConfig, until_eos


@dataclass(frozen=True)
class Backend:
    """A program with a model loaded."""

    name: str
    path: Path
    precision: str
    """What its weights are stored or computed in."""
    vocab_size: int
    """Logits a token."""
    encode: Callable[[str], list[int]]
    """From a text to its ids as a user of this program gets them, so with BOS if it adds one."""
    decode: Callable[[Sequence[int]], str]
    """From ids to their text, special tokens included."""
    logits: Callable[[Sequence[int]], np.ndarray]
    """From ids to the logits (T, V) of the token after each, in fp32."""
    greedy: Callable[[Sequence[int], int], list[int]]
    """From ids and a number of tokens to the likeliest continuation, cut before EOS."""
    faults: list[str]
    """What in the files is not as the trained model has it, in sentences."""


@dataclass(frozen=True)
class Reference(Backend):
    """The network of this project, in fp32 on the CPU."""

    network: CausalLM

    @property
    def config(self) -> ModelConfig:
        """What the trained network is."""
        return self.network.config

    def fit(self, text: str, most_tokens: int) -> str:
        """Return a text, or its beginning if it has more tokens than that, without a BOS and EOS of its own.

        Those of a document are put there by whoever encodes it; the packer alone does not double what a text has.
        """
        ids = self.encode(text)
        beginning = self.decode(ids[1:most_tokens])
        return beginning if len(ids) <= most_tokens else beginning.rstrip("\ufffd")


def reference(folder: Path) -> Reference:
    """Open the trained model."""
    network, tokenizer = open_own(folder, dtype=torch.float32)
    bos_id, eos_id = network.config.bos_token_id, network.config.eos_token_id

    def greedy(ids: Sequence[int], new_tokens: int) -> list[int]:
        prompt = torch.tensor([list(ids)])
        output = network.generate(prompt, max_new_tokens=new_tokens, do_sample=False, repetition_penalty=1.0)
        return until_eos(output[0, len(ids) :].tolist(), eos_id)[0]

    return Reference(
        name="ours",
        path=folder,
        precision="f32",
        vocab_size=network.config.vocab_size,
        encode=lambda text: as_documents(*encode_texts(tokenizer, [text]), bos_id, eos_id)[0].tolist()[:-1],
        decode=lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False),
        logits=torch.inference_mode()(lambda ids: network.logits(torch.tensor([list(ids)]))[0].numpy()),
        greedy=greedy,
        faults=[],
        network=network,
    )


def transformers_backend(folder: Path, own: Reference) -> Backend:
    """Open a folder with Hugging Face's transformers, in fp32; the folder's sampling settings are left out."""
    network, tokenizer, missing = open_with_transformers(folder)
    eos_id, weights, stored = own.config.eos_token_id, own.network.state_dict(), stored_weights(folder)

    @torch.inference_mode()
    def greedy(ids: Sequence[int], new_tokens: int) -> list[int]:
        prompt = torch.tensor([list(ids)])
        output = network.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=eos_id,
            pad_token_id=own.config.pad_token_id,
        )
        return until_eos(output[0, len(ids) :].tolist(), eos_id)[0]

    @torch.inference_mode()
    def logits(ids: Sequence[int]) -> np.ndarray:
        return network(torch.tensor([list(ids)]), use_cache=False).logits[0].float().numpy()

    precision = stored_type(stored, weights)
    return Backend(
        name="transformers" if precision == "f32" else f"transformers {precision}",
        path=folder,
        precision=precision,
        vocab_size=network.get_output_embeddings().weight.shape[0],
        encode=lambda text: tokenizer(text)["input_ids"],
        decode=lambda ids: tokenizer.decode(list(ids)),
        logits=logits,
        greedy=greedy,
        faults=folder_faults(network, missing, stored, own.config, weights),
    )


def llama_cpp_backend(path: Path, own: Reference, positions: int) -> Backend:
    """Open a GGUF file with llama.cpp, with the settings that it has by default."""
    gguf = library("gguf", "a GGUF file")
    file = read_gguf(gguf, path)
    precision = file_type(gguf, file)
    llama_cpp = library("llama_cpp", f"to run {path}, llama.cpp")
    try:
        llama: Any = llama_cpp.Llama(
            str(path),
            n_ctx=positions,
            n_batch=positions,
            n_threads=torch.get_num_threads(),
            n_threads_batch=torch.get_num_threads(),
            logits_all=True,
            verbose=False,
        )
    except (ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"{path}: llama.cpp cannot load it ({printable(error)}): export it again") from None

    def logits(ids: Sequence[int]) -> np.ndarray:
        llama.reset()
        llama.eval(list(ids))
        return llama.scores[: len(ids)].copy()

    def greedy(ids: Sequence[int], new_tokens: int) -> list[int]:
        written: list[int] = []
        best = int(logits(ids)[-1].argmax())
        while best != own.config.eos_token_id and len(written) < new_tokens:
            written.append(best)
            llama.eval([best])
            best = int(llama.scores[llama.n_tokens - 1].argmax())
        return written

    return Backend(
        name=f"llama.cpp {precision}",
        path=path,
        precision=precision,
        vocab_size=llama.n_vocab(),
        encode=lambda text: llama.tokenize(text.encode("utf-8"), add_bos=True, special=True),
        decode=lambda ids: llama.detokenize(list(ids), special=True).decode("utf-8", "replace"),
        logits=logits,
        greedy=greedy,
        faults=file_faults(file, own.config, own.network.state_dict()),
    )

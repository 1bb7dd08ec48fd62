"""The programs that a model is served with, each behind the same few calls; ours is what the others are measured by.

Shapes in names: T tokens, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from common.errors import UserError
from common.files import printable
from corpus.packing import encode_documents
from corpus.tokenizer import load_tokenizer
from exporting.gguf_file import read_gguf
from exporting.libraries import library
from exporting.verification import structure
from model import ModelConfigError, load_model, until_eos


class Backend(ABC):
    """A program with a model loaded; `precision` is what its weights are stored or computed in."""

    name: str
    path: Path
    precision: str

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of a text as a user of this program gets them, so with BOS if it adds one."""

    @abstractmethod
    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each id."""

    @abstractmethod
    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Return the logits (T, V) of the token after each id, in fp32."""

    @abstractmethod
    def greedy(self, ids: Sequence[int], new_tokens: int) -> list[int]:
        """Return the likeliest continuation, cut before EOS."""

    def faults(self) -> list[str]:
        """Return what in the files is not as the trained model has it, in sentences; empty if nothing is."""
        return []


class OwnModel(Backend):
    """The network of this project, in fp32 on the CPU."""

    name, precision = "ours", "f32"

    def __init__(self, folder: Path) -> None:
        self.path = folder
        try:
            self.model = load_model(folder, dtype=torch.float32)
        except ModelConfigError as error:
            raise UserError(str(error)) from None
        if not (folder / "tokenizer.json").is_file():
            raise UserError(f"{folder / 'tokenizer.json'} is missing: copy it there from the folder of the corpus")
        self.config = self.model.config
        self.tokenizer: Tokenizer = load_tokenizer(folder / "tokenizer.json")

    def encode(self, text: str) -> list[int]:
        """Return the ids of the packed corpus, without the EOS at the end."""
        config = self.config
        ids = encode_documents(self.tokenizer, [text], config.bos_token_id, config.eos_token_id)[0].tolist()
        return ids[:-1]

    def fit(self, text: str, most_tokens: int) -> str:
        """Return a text, or its beginning if it has more tokens than that, without a BOS and EOS of its own.

        Those of a document are put there by whoever encodes it; the packer alone does not double what a text has.
        """
        ids = self.encode(text)
        beginning = self.decode(ids[1:most_tokens])
        return beginning if len(ids) <= most_tokens else beginning.rstrip("\ufffd")

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids, special tokens included."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """See Backend."""
        return [self.decode([index]) for index in ids]

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """See Backend."""
        return self.model.logits(torch.tensor([list(ids)]))[0].numpy()

    def greedy(self, ids: Sequence[int], new_tokens: int) -> list[int]:
        """See Backend."""
        output = self.model.generate(
            torch.tensor([list(ids)]), max_new_tokens=new_tokens, do_sample=False, repetition_penalty=1.0
        )
        return until_eos(output[0, len(ids) :].tolist(), self.config.eos_token_id)[0]


class Transformers(Backend):
    """A folder in Hugging Face's transformers, in fp32."""

    name, precision = "transformers", "f32"

    def __init__(self, folder: Path, reference: OwnModel) -> None:
        transformers = library("transformers", "a Hugging Face folder")
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.path, self.reference = folder, reference
        local: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
        try:
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, **local)
            self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **local)
        except Exception as error:  # whatever its many classes raise
            raise UserError(f"{folder}: transformers cannot load it ({printable(error)})") from None
        self.model.eval()

    def encode(self, text: str) -> list[int]:
        """See Backend."""
        return self.tokenizer(text)["input_ids"]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """See Backend."""
        return [self.tokenizer.decode([index]) for index in ids]

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """See Backend."""
        return self.model(torch.tensor([list(ids)]), use_cache=False).logits[0].float().numpy()

    @torch.inference_mode()
    def greedy(self, ids: Sequence[int], new_tokens: int) -> list[int]:
        """See Backend; the folder's own sampling settings are left out."""
        eos_id = self.reference.config.eos_token_id
        prompt = torch.tensor([list(ids)])
        output = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=eos_id,
            pad_token_id=self.reference.config.pad_token_id,
        )
        return until_eos(output[0, len(ids) :].tolist(), eos_id)[0]

    def faults(self) -> list[str]:
        """See Backend."""
        return structure.folder_faults(self.path, self.model, self.reference.config, self.reference.model.state_dict())


class LlamaCpp(Backend):
    """A GGUF file in llama.cpp, with the settings that it has by default."""

    def __init__(self, path: Path, reference: OwnModel, positions: int) -> None:
        self.path, self.reference = path, reference
        gguf = library("gguf", "a GGUF file")
        self.file = read_gguf(gguf, path)
        self.precision = structure.file_type(gguf, self.file)
        self.name = f"llama.cpp {self.precision}"
        llama_cpp = library("llama_cpp", f"to run {path}, llama.cpp")
        try:
            self.model: Any = llama_cpp.Llama(
                str(path), n_ctx=positions, n_batch=positions, logits_all=True, verbose=False
            )
        except (ValueError, AssertionError, RuntimeError) as error:
            raise UserError(f"{path}: llama.cpp cannot load it ({printable(error)}): export it again") from None

    def encode(self, text: str) -> list[int]:
        """See Backend."""
        return self.model.tokenize(text.encode("utf-8"), add_bos=True, special=True)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """See Backend."""
        return [self.model.detokenize([index], special=True).decode("utf-8", "replace") for index in ids]

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """See Backend."""
        self.model.reset()
        self.model.eval(list(ids))
        return self.model.scores[: len(ids)].copy()

    def greedy(self, ids: Sequence[int], new_tokens: int) -> list[int]:
        """See Backend."""
        eos_id, written = self.reference.config.eos_token_id, []
        self.model.reset()
        self.model.eval(list(ids))
        for _ in range(new_tokens):
            best = int(self.model.scores[self.model.n_tokens - 1].argmax())
            if best == eos_id:
                break
            written.append(best)
            self.model.eval([best])
        return written

    def faults(self) -> list[str]:
        """See Backend."""
        return structure.file_faults(self.file, self.reference.config, self.reference.model.state_dict())

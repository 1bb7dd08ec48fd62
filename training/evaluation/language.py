"""What the model knows of its language at the end of a run: minimal pairs and its use of context."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer

from corpus.shards import TokenStream
from evaluation.documents import held_out_documents
from evaluation.language_figures import LanguageFigures, measure_figures
from model import CausalLM, ModelConfig
from training.checkpointing.export import inference_model
from training.engine.protocol import Engine
from training.processes.process_group import broadcast_from_rank0

FEWEST_STEPS = 100  # a shorter run has learned nothing that would be worth the seconds
PAIRS = 50  # of a kind; diagnose.py --figures takes more


def final_figures(
    engine: Engine, stream: TokenStream, tokenizer: Tokenizer, config: ModelConfig, seq_len: int
) -> tuple[LanguageFigures | None, str | None]:
    """Return the figures of the live weights, or what stood in the way; collective, rank 0 measures."""
    model = inference_model(engine, config)
    return broadcast_from_rank0(lambda: _measure(model, stream, tokenizer, config, seq_len))


@torch.inference_mode()
def _measure(
    model: CausalLM, stream: TokenStream, tokenizer: Tokenizer, config: ModelConfig, seq_len: int
) -> tuple[LanguageFigures | None, str | None]:
    device = next(model.parameters()).device
    try:
        figures = measure_figures(
            held_out_documents(stream, bos_id=config.bos_token_id, eos_id=config.eos_token_id),
            lambda ids_BT: model.packed_logits(ids_BT.to(device)).float(),
            encode=lambda texts: [found.ids for found in tokenizer.encode_batch(list(texts), add_special_tokens=False)],
            decode=lambda ids: tokenizer.decode(list(ids)),
            start_id=config.bos_token_id,
            vocab_size=config.vocab_size,
            longest=seq_len,
            pairs=PAIRS,
        )
    except FloatingPointError as error:
        return None, str(error)
    except torch.OutOfMemoryError:
        return None, "there is not enough memory beside the training"
    return figures, None

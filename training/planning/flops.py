"""How many floating-point operations a token costs in training."""

from __future__ import annotations

from model import ModelConfig, count_parameters


def training_flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Return the operations of forward and backward pass (3 x forward): matrix products, a multiply-add is 2.

    Active parameters twice each (the embedding once: its use as output matrix; looking a row up is free), and causal
    attention's two products over half the row on average, as in PaLM's appendix B.
    """
    _, active = count_parameters(config)
    attention = 2 * 2 * config.num_hidden_layers * config.num_attention_heads * config.head_size * seq_len / 2
    return 3 * (2 * active + attention)

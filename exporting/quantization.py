"""The types that the weights of a GGUF file can have, and what the widths of a model allow."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the script shows the types before it waits for torch
    from model import ModelConfig

TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
BLOCK = 32  # weights that share a scale, in the types with an underscore
SUPER_BLOCK = 256  # the same of the K-quants, which llama.cpp's own llama-quantize makes


def is_blocked(kind: str) -> bool:
    """Return whether the type stores weights in blocks, so that a row must be a multiple of BLOCK wide."""
    return "_" in kind


def row_widths(config: ModelConfig) -> dict[str, int]:
    """Return the widths of the rows of all matrices, by the flag that sets them."""
    expert = {"moe_intermediate_size": config.moe_intermediate_size}
    return {
        "hidden_size": config.hidden_size,
        "num_attention_heads x head_dim": config.num_attention_heads * config.head_size,
        **(expert if config.use_moe else {"intermediate_size": config.intermediate_size}),
    }


def not_divisible(config: ModelConfig, by: int) -> str:
    """Return the widths that are no multiple of `by`, such as "hidden_size 176"; empty if all are."""
    return ", ".join(f"{name} {width}" for name, width in row_widths(config).items() if width % by)


def plan_line(config: ModelConfig) -> str:
    """Return which GGUF types the widths of a model allow, for a plan made before it is trained."""
    if odd := not_divisible(config, BLOCK):
        return f"no multiple of {BLOCK}: {odd}; those matrices stay F16 in a quantised GGUF file"
    if odd := not_divisible(config, SUPER_BLOCK):
        return f"q8_0 and q4_0 fit; K-quants (Q4_K, Q6_K) would not, no multiple of {SUPER_BLOCK}: {odd}"
    return f"every GGUF type fits, K-quants too: all widths are multiples of {SUPER_BLOCK}"

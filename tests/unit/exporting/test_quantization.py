"""What the widths of a model allow."""

from __future__ import annotations

import pytest

from exporting.quantization import not_divisible, plan_line
from model import ModelConfig


def test_the_default_shapes() -> None:
    assert plan_line(ModelConfig()) == (
        "q8_0 and q4_0 fit; K-quants (Q4_K, Q6_K) would not, no multiple of 256: moe_intermediate_size 704"
    )
    assert "intermediate_size 1408" in plan_line(ModelConfig(use_moe=False))


@pytest.mark.parametrize(
    ("width", "line"), [(768, "every GGUF type fits"), (720, "no multiple of 32: moe_intermediate_size 720")]
)
def test_other_widths(width: int, line: str) -> None:
    assert plan_line(ModelConfig(moe_intermediate_size=width)).startswith(line)


def test_the_heads_count_together() -> None:
    config = ModelConfig(num_attention_heads=6, num_key_value_heads=2, head_dim=40)
    assert not_divisible(config, 32) == "num_attention_heads x head_dim 240"

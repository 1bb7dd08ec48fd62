"""PyTorch's compiler stays out of a process, until somebody really asks for it."""

from __future__ import annotations

import subprocess
import sys

import torch

from common.uncompiled import import_uncompiled

PROGRAM = """
import sys
import torch
from common.uncompiled import leave_compiler_out

leave_compiler_out()
leave_compiler_out()
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.AdamW([weight], lr=0.5)
weight.sum().backward()
optimizer.step()
optimizer.zero_grad()
torch.empty(2, device="meta").normal_()
import torch.distributed.tensor  # transformers does; it asks every module for its file
print(weight.tolist()[0] < 1, "torch._dynamo.config" in sys.modules)
print(torch._dynamo.config.disable, sys.modules["torch._dynamo"] is torch._dynamo)
import torch._dynamo.utils
leave_compiler_out()
print(torch.compile(lambda x: x + 1)(weight.detach()).shape[0])
"""


def test_an_optimizer_steps_without_the_compiler_which_is_there_when_asked_for():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "False", "True", "True", "2"], done.stderr


def test_what_a_module_would_compile_is_taken_as_it_is(tmp_path, monkeypatch):
    source = (
        "import torch\n"
        "def plain(x): return x\n"
        "with_options = torch.compile(dynamic=True)(plain)\n"
        "without = torch.compile(plain)\n"
    )
    (tmp_path / "compiled_at_import.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    before = torch.compile
    import_uncompiled("compiled_at_import")
    module = sys.modules.pop("compiled_at_import")
    assert module.with_options is module.plain
    assert module.without is module.plain
    assert torch.compile is before


COUNTING = """
import sys
from model import CausalLM, ModelConfig, count_parameters
from common.uncompiled import on_meta_device

config = ModelConfig(vocab_size=500, hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
print(count_parameters(config)[0] > 0)
with on_meta_device():
    model = CausalLM(config)
print({parameter.device.type for parameter in model.parameters()} == {"meta"}, "sympy" in sys.modules)
"""


def test_counting_parameters_needs_no_symbolic_mathematics():
    done = subprocess.run([sys.executable, "-c", COUNTING], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "True", "False"], done.stderr

"""DeepSpeed's expert layer and ours: one function of one set of weights."""

from __future__ import annotations

import gc
import os
import socket
import weakref

import pytest
import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

from model import CausalLM
from model.hf import hf_name
from model.init import init_weights
from model.kernels import Kernels
from model.moe import DeepSpeedMoE, LocalMoE
from model.packed_attention import PackedRows, document_mask

ROUTES = [(4, 1), (4, 2), (5, 3)]


@pytest.fixture(scope="module", autouse=True)
def _one_process():
    """A process group of one. Made by torch first, so that DeepSpeed adopts it and compiles nothing."""
    if dist.is_initialized():
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    before = dict(os.environ)
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu"
    )
    dist.init_process_group("gloo")
    import deepspeed
    from deepspeed.utils import groups

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled here, for half a minute
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    yield
    dist.destroy_process_group()
    # what DeepSpeed remembers of the group would fail whoever makes the next one in this process
    deepspeed.comm.comm.cdb = None
    for known in (
        groups._EXPERT_PARALLEL_GROUP,
        groups._EXPERT_DATA_PARALLEL_GROUP,
        groups._EXPERT_PARALLEL_GROUP_RANKS,
        groups._EXPERT_DATA_PARALLEL_GROUP_RANKS,
    ):
        known.clear()
    os.environ.clear()
    os.environ.update(before)


def new_layer(config) -> DeepSpeedMoE:
    """With weights large enough to tell experts apart; DeepSpeed itself starts them as copies of one."""
    layer = DeepSpeedMoE(config)
    layer.moe.set_deepspeed_parallelism()
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return layer


def named_parameters(layer: DeepSpeedMoE) -> dict[str, torch.nn.Parameter]:
    """Under the names that LocalMoE has."""
    model = torch.nn.ModuleDict({"block": torch.nn.ModuleDict({"mlp": layer})})
    return {hf_name(name, model).removeprefix("block.mlp."): p for name, p in model.named_parameters()}


def local_copy(layer: DeepSpeedMoE, config) -> LocalMoE:
    local = LocalMoE(config)
    local.load_state_dict({name: p.detach() for name, p in named_parameters(layer).items()})
    return local.eval()


def tokens(length: int = 64, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, length, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=ROUTES, ids=lambda routes: f"top{routes[1]}of{routes[0]}")
def config(request, make_config):
    experts, top_k = request.param
    return make_config(num_experts=experts, num_experts_per_tok=top_k)


@torch.no_grad()
@pytest.mark.parametrize("training", [True, False])
def test_both_forms_compute_the_same(config, training):
    layer = new_layer(config).train(training)
    x = tokens()
    y = layer(x)
    torch.testing.assert_close(local_copy(layer, config)(x), y, atol=1e-5, rtol=1e-4)
    assert y.abs().mean() > 0.1


def test_both_forms_have_the_same_gradients(config):
    layer = new_layer(config)
    local = local_copy(layer, config)
    x, direction = tokens(), torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(1))
    (layer(x) * direction).sum().backward()
    (local(x) * direction).sum().backward()
    for name, parameter in named_parameters(layer).items():
        torch.testing.assert_close(parameter.grad, local.get_parameter(name).grad, atol=1e-4, rtol=1e-3)
        assert parameter.grad.abs().max() > 1e-2


def test_our_dispatch_and_deepspeeds_compute_the_same(config):
    layer, direction = new_layer(config).train(), torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(1))
    found = []
    for together in (True, False):
        layer.together = together
        layer.zero_grad()
        layer.route_counts.zero_()
        x = skew(layer).requires_grad_()
        y = layer(x)
        ((y * direction).sum() + layer.balance_loss).backward()
        gradients = [parameter.grad.clone() for parameter in layer.parameters()]
        found.append([y, layer.balance_loss, x.grad, layer.route_counts.clone(), *gradients])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_an_expert_without_tokens_gets_a_gradient_of_zero(make_config):
    layer = new_layer(make_config(num_experts_per_tok=1)).train()
    gate = layer.moe.deepspeed_moe.gate.wg.weight.data
    gate.zero_()
    gate[0] = 1.0
    layer(tokens().abs()).sum().backward()
    idle = layer.moe.deepspeed_moe.experts.deepspeed_experts[1]
    assert layer.route_counts.tolist() == [0, 128, 0, 0, 0]
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in idle.parameters())


@torch.no_grad()
@pytest.mark.parametrize("form", ["local", "deepspeed"])
def test_a_token_is_its_own_affair(config, form):
    layer = new_layer(config).eval()
    layer = layer if form == "deepspeed" else local_copy(layer, config)
    x = tokens(length=16)
    together = layer(x)
    alone = torch.stack([layer(x[0:1, i : i + 1])[0, 0] for i in range(16)])
    torch.testing.assert_close(together[0], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_whole_model_is_the_same_in_both_forms(config):
    training = CausalLM(config, DeepSpeedMoE)
    for layer in training.expert_layers():
        layer.moe.set_deepspeed_parallelism()
    init_weights(training, config, 0)
    local = CausalLM(config)
    init_weights(local, config, 0)
    ids = torch.randint(3, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(training.eval().logits(ids), local.eval().logits(ids), atol=1e-4, rtol=1e-4)
    options = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": -1}
    expected = local.generate(ids, **options).tolist()
    assert training.train().generate(ids, **options).tolist() == expected
    assert training.training
    assert all(layer.route_counts.sum() == 0 for layer in training.expert_layers())  # no part of training


def skew(layer: DeepSpeedMoE) -> torch.Tensor:
    """Tokens of which all but a few go to expert 0 first."""
    gate = layer.moe.deepspeed_moe.gate.wg.weight.data
    gate.zero_()
    gate[0] = 1.0
    gate[1:, 1:] = torch.randn(gate[1:, 1:].shape, generator=torch.Generator().manual_seed(2)) * 0.01
    return tokens().abs()


@torch.no_grad()
def test_a_capacity_drops_tokens_in_training_and_counts_them(make_config):
    layer = new_layer(make_config(num_experts_per_tok=1, capacity_factor=1.0))
    x = skew(layer)
    y = layer.train()(x)
    even_share = 128 // 4
    assert layer.route_counts.tolist() == [128 - even_share, even_share, 0, 0, 0]
    dropped = (y == 0).all(-1).sum()
    assert dropped == 128 - even_share


@torch.no_grad()
def test_evaluation_drops_nothing_and_counts_nothing(make_config):
    capped = make_config(num_experts_per_tok=1, capacity_factor=1.0)
    layer = new_layer(capped).eval()
    x = skew(layer)
    torch.testing.assert_close(layer(x), local_copy(layer, capped)(x), atol=1e-5, rtol=1e-4)
    assert layer.route_counts.sum() == 0


@torch.no_grad()
def test_without_a_capacity_every_route_is_counted_and_none_dropped(config):
    layer = new_layer(config).train()
    x = skew(layer)
    for passes in (1, 2):
        layer(x)
        assert layer.route_counts[0] == 0
        assert layer.route_counts.sum() == passes * 128 * config.num_experts_per_tok
        assert layer.route_counts[1] == passes * 128


@torch.no_grad()
def test_the_balance_loss_is_1_when_balanced_and_grows_when_skewed(config):
    layer = new_layer(config).train()
    gate = layer.moe.deepspeed_moe.gate.wg.weight.data
    gate.zero_()
    gate.fill_diagonal_(5.0)
    # token i prefers expert i, then the next ones: each expert is first, second and third choice equally often
    experts = config.num_experts
    x = torch.zeros(1, 60, 32)
    for rank, strength in enumerate((1.0, 0.6, 0.3)):
        x[0, torch.arange(60), (torch.arange(60) + rank) % experts] = strength
    layer(x)
    assert float(layer.balance_loss) == pytest.approx(1.0, abs=1e-4)
    layer(skew(layer))
    assert float(layer.balance_loss) > 1.2


def test_gradients_reach_the_router_from_the_text_and_from_the_balance(config):
    layer = new_layer(config)
    gate = layer.moe.deepspeed_moe.gate.wg.weight
    y = layer(tokens())
    (from_text,) = torch.autograd.grad(y.square().sum(), gate, retain_graph=True)
    (from_balance,) = torch.autograd.grad(layer.balance_loss, gate)
    assert from_text.abs().max() > 1e-2
    assert from_balance.abs().max() > 1e-3


def test_the_balance_loss_is_part_of_the_total(config):
    model = CausalLM(config, DeepSpeedMoE)
    for layer in model.expert_layers():
        layer.moe.set_deepspeed_parallelism()
    init_weights(model, config, 0)
    ids = torch.randint(3, 300, (2, 25), generator=torch.Generator().manual_seed(0))
    losses = model(ids[:, :-1], ids[:, 1:])
    mean = sum(layer.balance_loss for layer in model.expert_layers()) / config.num_hidden_layers
    assert torch.isclose(losses.balance, mean)
    assert torch.isclose(losses.total, losses.lm + config.router_aux_loss_coef * mean)
    assert losses.total > losses.lm


def training_model(config) -> CausalLM:
    model = CausalLM(config, DeepSpeedMoE)
    for layer in model.expert_layers():
        layer.moe.set_deepspeed_parallelism()
    init_weights(model, config, 0)
    return model.train()


@pytest.mark.parametrize("together", [True, False], ids=["ours", "deepspeeds"])
def test_no_layer_keeps_the_graph_of_a_pass(make_config, together):
    model = training_model(make_config())
    for layer in model.expert_layers():
        layer.together = together
    ids = torch.randint(3, 300, (2, 25), generator=torch.Generator().manual_seed(0))
    kept = []

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor.detach()
            kept.append(weakref.ref(self))

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        losses = model(ids[:, :-1], ids[:, 1:])
    assert any(reference() for reference in kept)
    del losses
    gc.collect()
    assert not any(reference() for reference in kept)


class Waits(TorchFunctionMode):
    """Counts the calls at which the host would wait for a GPU."""

    NAMES = ("tolist", "item", "cpu", "numpy", "nonzero", "bincount", "tensor", "as_tensor", "__bool__", "__int__")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if (name := getattr(func, "__name__", "")) in self.NAMES:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_a_micro_batch_waits_once_a_layer_for_the_sizes_of_the_experts(make_config):
    config = make_config(num_hidden_layers=3)
    model = training_model(config)
    # on a CPU the borders of the documents are read as well, which costs nothing there
    model.use_kernels(Kernels(packed_rows=lambda ids, bos, eos, **_: PackedRows(document_mask(ids, bos, eos))))
    ids = torch.randint(3, 300, (2, 25), generator=torch.Generator().manual_seed(0))
    with Waits() as waits:
        losses = model(ids[:, :-1], ids[:, 1:])
        losses.total.backward()
    assert waits.found == ["tolist"] * 3

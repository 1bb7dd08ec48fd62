"""The network against transformers and against what a language model must not do; the folder it is kept in."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from model import CausalLM, ModelConfig, ModelConfigError, count_parameters, load_model, save_model
from model.packed_attention import document_mask


def random_ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Text without marks."""
    return torch.randint(3, 300, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def packed_logits(model: CausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Logits under the mask of training."""
    return model.logits(ids, mask=document_mask(ids, model.config.bos_token_id, model.config.eos_token_id))


@torch.no_grad()
def test_logits_are_those_of_transformers(any_model, to_transformers):
    ids = random_ids(3, 40)
    theirs = to_transformers(any_model)(ids).logits
    assert theirs.std() > 0.3
    assert (any_model.logits(ids) - theirs).abs().max() < 1e-4


@torch.no_grad()
def test_a_token_changes_nothing_before_itself(any_model):
    ids = random_ids(1, 30)
    changed = ids.clone()
    changed[0, 17] = 299 if ids[0, 17] != 299 else 298
    before, after = any_model.logits(ids), any_model.logits(changed)
    torch.testing.assert_close(after[:, :17], before[:, :17], atol=1e-5, rtol=1e-5)
    assert (after[:, 17:] - before[:, 17:]).abs().amax(-1).min() > 1e-3  # and something at every later place


def test_packed_documents_do_not_see_each_other(any_model):
    tail, document, head = random_ids(1, 9, 1), random_ids(1, 12, 2), random_ids(1, 7, 3)
    begin, end = torch.tensor([[1]]), torch.tensor([[2]])
    whole = torch.cat((begin, document, end), dim=1)
    row = torch.cat((tail, end, whole, begin, head), dim=1)  # as packing cuts: a tail, a document, the head of one
    together = packed_logits(any_model, row)
    for start, part in ((0, torch.cat((tail, end), 1)), (10, whole), (24, torch.cat((begin, head), 1))):
        alone = any_model.logits(part).detach()
        torch.testing.assert_close(together[:, start : start + part.shape[1]], alone, atol=1e-4, rtol=1e-4)
    with torch.no_grad():  # the comparison means something: without the mask they do see each other
        assert (any_model.logits(row)[:, 10:24] - together[:, 10:24]).abs().max() > 1e-2


def test_only_a_begin_mark_right_after_an_end_mark_starts_a_document():
    ids = torch.tensor([[5, 1, 6, 2, 7, 2, 1, 8]])
    mask = document_mask(ids, 1, 2)[0, 0]
    assert mask[5].tolist() == [True] * 6 + [False] * 2
    assert mask[7].tolist() == [False] * 6 + [True] * 2


def test_documents_may_be_left_unmasked(make_model):
    ids = torch.cat((random_ids(1, 9), torch.tensor([[2, 1]]), random_ids(1, 9, 1)), dim=1)
    plain = make_model(mask_documents=False)
    with torch.no_grad():
        expected = F.cross_entropy(plain.logits(ids)[0, :-1], ids[0, 1:])
        assert torch.isclose(plain(ids[:, :-1], ids[:, 1:]).total, expected, atol=1e-5)
        assert not torch.isclose(make_model()(ids[:, :-1], ids[:, 1:]).total, expected, atol=1e-4)


@pytest.mark.parametrize("chunk_elements", [2**23, 300 * 7])
def test_the_loss_and_its_gradient_are_those_of_plain_cross_entropy(any_model, monkeypatch, chunk_elements):
    monkeypatch.setattr("model.loss.CHUNK_ELEMENTS", chunk_elements)
    ids = torch.cat((random_ids(2, 20), torch.tensor([[2, 1], [2, 1]]), random_ids(2, 20, 1)), dim=1)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    weights = list(any_model.parameters())
    losses = any_model(inputs, targets)
    ours = torch.autograd.grad(losses.total, weights)
    mask = document_mask(inputs, 1, 2)
    expected = F.cross_entropy(any_model.logits(inputs, mask=mask).flatten(0, 1), targets.flatten())
    assert torch.isclose(losses.total, expected, atol=1e-5)
    assert torch.isclose(any_model.loss_sum(inputs, targets) / targets.numel(), expected, atol=1e-5)
    for ours_one, theirs in zip(ours, torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(ours_one, theirs, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("changes", "million", "tolerance"), [({}, 45, 0.03), ({"use_moe": False}, 26, 0.05)])
def test_the_defaults_have_the_sizes_of_the_origin_document(changes, million, tolerance):
    total, active = count_parameters(ModelConfig(**changes))
    assert abs(total / 1e6 - million) < tolerance * million
    assert abs(active / 1e6 - 26) < 0.06 * 26


def test_parameters_are_counted_by_what_is_there(any_model):
    config = any_model.config
    total, active = count_parameters(config)
    assert total == sum(p.numel() for p in any_model.parameters())
    idle = (config.num_experts - config.num_experts_per_tok) if config.use_moe else 0
    assert total - active == config.num_hidden_layers * idle * 3 * config.hidden_size * config.moe_intermediate_size


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 30, "vocab_size": 70000}, ["hidden_size 30", "vocab_size 70000"]),
        ({"num_hidden_layers": 0, "num_experts": -1}, ["num_hidden_layers is 0", "num_experts is -1"]),
        (
            {"num_key_value_heads": 3, "head_dim": 5, "capacity_factor": -1.0},
            ["num_key_value_heads 3", "5 wide", "capacity_factor"],
        ),
        ({"num_experts": 3, "num_experts_per_tok": 4, "ep_size": 2}, ["num_experts_per_tok 4", "ep_size 2"]),
    ],
)
def test_every_problem_of_a_shape_is_reported_at_once(make_config, changes, words):
    with pytest.raises(ModelConfigError) as caught:
        CausalLM(make_config(**changes))
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_dense_model_cares_for_no_number_of_experts(make_config):
    make_config(use_moe=False, num_experts_per_tok=9).validate()


def test_a_folder_gives_the_same_model_back(any_model, tmp_path):
    save_model(tmp_path, any_model.config, any_model.state_dict())
    loaded = load_model(tmp_path)
    assert loaded.config == any_model.config
    assert not loaded.training
    ours, theirs = any_model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_folder_keeps_its_precision_or_gives_another(make_model, tmp_path):
    model = make_model().half()
    save_model(tmp_path, model.config, model.state_dict())
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "float16"
    assert next(load_model(tmp_path).parameters()).dtype == torch.float16
    assert next(load_model(tmp_path, dtype=torch.float32).parameters()).dtype == torch.float32


def test_the_exported_configuration_is_for_one_process_without_dropping(make_config, make_model, tmp_path):
    save_model(tmp_path, make_config(ep_size=2, capacity_factor=1.5), make_model().state_dict())
    assert load_model(tmp_path).config == make_config()


@pytest.fixture
def folder(make_model, tmp_path):
    model = make_model()
    save_model(tmp_path, model.config, model.state_dict())
    return tmp_path


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ModelConfigError, match=f"{name} is missing"):
        load_model(folder)


def test_weights_cut_short_are_named(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelConfigError, match=r"model\.safetensors does not hold"):
        load_model(folder)


def test_weights_of_another_shape_are_named(folder, make_model, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config["bufudu"]["moe_intermediate_size"] += 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelConfigError, match=r"model\.safetensors does not hold .*size mismatch for") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        '{"model_type": "qwen3"}',
        '{"bufudu": 3}',
        '{"bufudu": []}',
        '{"bufudu": {"hidden_size": "wide"}}',
        '{"bufudu": {"head_dim": "x"}}',
        "\xff",
    ],
)
def test_a_foreign_configuration_is_named(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelConfigError, match=r"config\.json was not written by this project"):
        load_model(folder)


@pytest.mark.parametrize("text", ["", "{", '{"bufudu": {"hidden_size": 32,'])
def test_a_damaged_configuration_is_told_from_a_foreign_one(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelConfigError, match=r"config\.json is damaged: no valid JSON \(.*line 1\); restore it"):
        load_model(folder)


def test_keys_of_a_later_version_are_passed_over(folder):
    config = json.loads((folder / "config.json").read_text())
    config["bufudu"]["invented_later"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    assert load_model(folder).config.hidden_size == 32


def test_saving_leaves_no_halves_behind(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


def changed(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    config["bufudu"] |= values
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": 32.0},
        {"hidden_size": True},
        {"hidden_size": 10**400},
        {"hidden_size": 2**60},
        {"head_dim": -4},
        {"num_hidden_layers": 10**9},
        {"num_experts": 10**9},
        {"num_experts": 10**6, "num_hidden_layers": 10**6},
        {"rope_theta": float("nan")},
        {"rope_theta": float("inf")},
        {"rope_theta": None},
        {"use_moe": 1},
        {"bos_token_id": -1},
        {"eos_token_id": 300},
        {"pad_token_id": None},
        {"vocab_size": 65_537},
        {"ep_size": 0},
        {"num_attention_heads": 2**30, "hidden_size": 2**30, "head_dim": 2**30},
    ],
)
def test_a_configuration_that_cannot_be_is_one_sentence(folder, values):
    changed(folder, **values)
    with pytest.raises(ModelConfigError) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"bufudu": ' * 5000, '{"bufudu": {"hidden_size": ' + "9" * 5000 + "}}"]
)
def test_a_configuration_that_chokes_python_is_named(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelConfigError, match=r"config\.json (was not written by this project|is damaged)"):
        load_model(folder)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float64])
def test_tensors_that_are_no_weights_are_named(folder, dtype):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(weights["model.norm.weight"].shape).to(dtype)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelConfigError, match=r"model\.safetensors does not hold .*model\.norm\.weight is "):
        load_model(folder)


def test_a_file_too_large_for_the_memory_is_named(folder, monkeypatch):
    def too_large(path):
        raise MemoryError("Cannot allocate memory (os error 12)")

    monkeypatch.setattr("model.hf.load_file", too_large)
    with pytest.raises(ModelConfigError, match=r"model\.safetensors does not hold .*Cannot allocate memory"):
        load_model(folder)

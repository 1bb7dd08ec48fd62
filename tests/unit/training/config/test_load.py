"""Reading a DeepSpeed JSON file and changing it with --set."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from training.config.load import load

CONFIGS = Path(__file__).parents[4] / "ds_configs"
FILES = sorted(file.stem for file in CONFIGS.glob("*.json") if not file.stem.startswith("tuned-"))


def written(tmp_path, text):
    file = tmp_path / "mine.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("optimizer.params.lr=3e-4", "optimizer.params.lr", 3e-4),
        ("optimizer.params.betas=[0.9, 0.95]", "optimizer.params.betas", [0.9, 0.95]),
        ("fp16.enabled=false", "fp16.enabled", False),
        ("bf16.enabled=auto", "bf16.enabled", "auto"),
        ("wandb.project=a=b", "wandb.project", "a=b"),
        ('wandb.project="7"', "wandb.project", "7"),
        ("wandb.project=", "wandb.project", ""),
        ("wandb.project=NaN", "wandb.project", "NaN"),
        ("wandb.project=不复读", "wandb.project", "不复读"),
        ('scheduler={"type": "WarmupLR"}', "scheduler.type", "WarmupLR"),
        ("zero_optimization.offload_optimizer.device=cpu", "zero_optimization.offload_optimizer.device", "cpu"),
    ],
)
def test_set(override, path, value):
    config = load(CONFIGS / "t4x2.json", [override])
    for key in path.split("."):
        config = config[key]
    assert config == value
    assert type(config) is type(value)


def test_set_later_wins_and_the_rest_stays():
    config = load(CONFIGS / "t4x2.json", ["fp16.enabled=false", "fp16.enabled=true", "optimizer.params.lr=1e-3"])
    assert config["fp16"]["enabled"] is True
    expected = json.loads((CONFIGS / "t4x2.json").read_text())
    expected["optimizer"]["params"]["lr"] = 1e-3
    assert config == expected


@pytest.mark.parametrize("override", ["", "lr", "=3", ".lr=3", "a..b=3", "a b=3", "optimizer.=3"])
def test_set_wants_a_key_and_a_value(override):
    with pytest.raises(UserError, match="write it as"):
        load(CONFIGS / "t4x2.json", [override])


def test_set_cannot_go_through_a_value():
    with pytest.raises(UserError) as caught:
        load(CONFIGS / "t4x2.json", ["gradient_clipping.max=3", "optimizer.params.betas.0=0.8", "nonsense"])
    assert "gradient_clipping is not a block but 1.0" in str(caught.value)
    assert "optimizer.params.betas is not a block but [0.9, 0.999]" in str(caught.value)
    assert "--set nonsense" in str(caught.value)


def test_a_missing_file_lists_the_ones_there_are(tmp_path):
    with pytest.raises(UserError) as caught:
        load(CONFIGS / "t4x3.json")
    assert "there is no such file" in str(caught.value)
    assert all(f"{name}.json" in str(caught.value) for name in FILES)
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{\n  "a": 1\n  "b": 2\n}', "line 3, column 3: not valid JSON"),
        ('{\n"a": "b', "line 2, column 6: not valid JSON: a text without its closing quote."),
        ('{\n"a": ', "line 2, column 6: not valid JSON: the file ends in the middle of it."),
        ('{"a": True}', "true, false, null"),
        ('{"a": 1} # the first', "Comments begin with //"),
        ('{"a": 1, /* twice */ "a": 2}', '"a" stands twice'),
        ('{"a": Infinity, // no number\n}', "Infinity is not valid in JSON"),
        ("[1, /* 2 */]", "one block"),
        ('{"a": 1, // ' + "long " * 5000 + "\n}", "line 1, column"),
        ("", "the file is empty"),
        ('{\n  // the batch, of "a"\n  "a": "//",\n  "b": [1,],, "c": 2\n}', "line 4, column 13: not valid JSON"),
        ('/* a\n */ {"a": True, "b": [1,],}', "line 2, column 11: not valid JSON: no value of JSON. JSON writes true"),
        ("{,}", "line 1, column 2"),
        ('{"fp16": {"enabled": true, "enabled": false}}', '"enabled" stands twice'),
        ('{"a": NaN}', "NaN is not valid in JSON"),
        ("[1, 2]", "one block"),
        (b"\xff\xfe{", "not UTF-8"),
        ('{"a": ' * 5000 + "1" + "}" * 5000, "blocks within blocks"),
        ('{"a": ' * 60 + "1" + "}" * 60, "more than 30 deep"),
    ],
)
def test_unreadable_files(tmp_path, text, words):
    with pytest.raises(UserError) as caught:
        load(written(tmp_path, text))
    assert words in str(caught.value)
    assert "mine.json" in str(caught.value)


def test_comments_and_last_commas_are_read_as_deepspeed_reads_them(tmp_path):
    text = '\ufeff{\n  // of the reference run\n  "a": {"lr": 2e-4, /* peak */ "betas": [0.9, 0.999,],},\n}\n'
    assert load(written(tmp_path, text), ["a.b=1"]) == {"a": {"lr": 2e-4, "betas": [0.9, 0.999], "b": 1}}


def test_a_byte_order_mark_is_no_error(tmp_path):
    assert load(written(tmp_path, b"\xef\xbb\xbf{}")) == {}


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_are_more_than_a_user_error(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "random.json"
    file.write_bytes(content)
    try:
        load(file)
    except UserError as error:
        assert str(error)


@pytest.mark.parametrize(
    "override",
    [
        "\ud800=1",
        "a\x1b[31m=1",
        ".".join(["a"] * 5000) + "=1",
        "x" * 9000,
        "optimizer.type.x.y=1",
        "train_batch_size.x=1",
    ],
)
def test_an_override_of_any_kind_is_shown_in_part(override):
    with pytest.raises(UserError) as caught:
        load(CONFIGS / "t4x2.json", [override])
    text = str(caught.value)
    assert len(text) < 600 and text.isprintable() and text.startswith("--set ")


def test_a_file_of_another_kind_of_thing_is_refused(tmp_path):
    for text in ("[" * 100_000, '{"a":' * 100_000, '{"a": ' + "[" * 400 + "]" * 400 + "}", '{"a": ' + "9" * 5000 + "}"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UserError, match=r"x\.json.{1,300}$"):
            load(tmp_path / "x.json", ["a.b=1"])


def test_reading_a_config_imports_neither_torch_nor_deepspeed():
    code = "import sys, training.config.load; sys.exit(bool({'torch', 'deepspeed'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CONFIGS.parent)

"""The flags of train.py: what they take, what they refuse, and which of several values counts."""

import argparse
from pathlib import Path

import pytest

from common.errors import UserError
from training.config import command_line
from training.config.command_line import duration, file_flags, model_config, options, parse, run_flags
from training.config.load import load


def wrong(capsys, *argv):
    """Return what the user reads: one sentence, not the whole usage."""
    with pytest.raises(UserError) as caught:
        parse(argv, "")
    assert capsys.readouterr().err == ""
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("11h30m", 41_400), ("45m", 2_700), ("90s", 90), ("1h1m1s", 3_661), ("1.5h", 5_400), ("30", 30)],
)
def test_durations(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-5m", "5x", "30m11h", "1 h", "1h30", "inf", "nan"])
def test_durations_that_are_none(text):
    with pytest.raises(argparse.ArgumentTypeError, match="not a duration"):
        duration(text)


@pytest.mark.parametrize(
    ("text", "what"), [("0m", "short"), ("0", "short"), ("9" * 400 + "h", "long"), ("1000000h", "long")]
)
def test_times_that_no_run_takes(text, what):
    with pytest.raises(argparse.ArgumentTypeError, match=f"too {what} a time"):
        duration(text)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--time_limit", "5x"], "'5x' is not a duration: write it like 11h30m, 45m or 90s"),
        (["--max_steps", "-1"], "'-1' is not a whole number of at least 1"),
        (["--max_rollbacks", "-1"], "'-1' is not a whole number of at least 0"),
        (["--max_steps", "0"], "0 is too small: give at least 1"),
        (["--max_steps", "1.5"], "'1.5' is not a whole number"),
        (["--max_steps", "many"], "'many' is not a whole number"),
        (["--seed", "-1"], "'-1' is not a whole number"),
        (["--epochs", "0"], "0 must be above 0"),
        (["--epochs", "-2"], "-2 must be above 0"),
        (["--epochs", "nan"], "nan must be above 0"),
        (["--epochs", "inf"], "inf must be above 0"),
        (["--epochs", "two"], "'two' is not a number"),
        (["--use_moe", "yes"], "'yes' is neither true nor false"),
        (["--hidden_size", "0"], "0 is too small"),
        (["--hidden_size", "-512"], "'-512' is not a whole number"),
        (["--router_aux_loss_coef", "-0.1"], "-0.1 must be at least 0"),
        (["--capacity_factor", "nan"], "nan must be at least 0"),
        (["--initializer_range", "inf"], "inf must be at least 0"),
        (["--rope_theta", "big"], "'big' is not a number"),
        (["--max_step", "3"], "unrecognized arguments: --max_step 3"),
        (["--set"], "expected at least one argument"),
        (["stray"], "unrecognized arguments: stray"),
    ],
)
def test_a_wrong_flag_is_named_with_what_it_takes(capsys, argv, words):
    message = wrong(capsys, *argv)
    assert words in message
    assert argv[0] in message


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--help"], "The first line.")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "The first line." in text
    assert all(f"--{name} " in text or f"--{name}\n" in text for name in run_flags())


def test_only_given_flags_are_returned_and_the_launchers_own_is_not():
    assert parse(["--local_rank=1", "--seed", "7"], "") == {"seed": 7}
    assert parse([], "") == {}


def test_numbers_may_be_grouped_and_set_repeated():
    given = parse(["--max_steps", "27,600", "--save_interval", "1_000", "--set", "a=1", "b=2", "--set", "c=3"], "")
    assert given == {"max_steps": 27_600, "save_interval": 1_000, "set": ["a=1", "b=2", "c=3"]}


def test_a_flag_wins_over_the_block_which_wins_over_the_default():
    given = parse(["--seed", "1", "--hidden_size", "64"], "")
    block = {"seed": 2, "hidden_size": 128, "log_interval": 10, "num_experts": 8, "use_moe": False, "time_limit": "2h"}
    run = options(given, file_flags({"bufudu": block}, "x.json"))
    assert (run.seed, run.log_interval, run.save_interval) == (1, 10, 1000)
    assert run.time_limit == 7_200
    assert run.model == {"hidden_size": 64, "num_experts": 8, "use_moe": False}
    config = model_config(run, vocab_size=100, bos_id=1, eos_id=2, pad_id=0)
    assert (config.hidden_size, config.num_experts, config.num_hidden_layers) == (64, 8, 8)
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (100, 1, 2, 0)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"epochs": -1}, "epochs: -1 must be above 0"),
        ({"max_steps": 1.5}, "max_steps: '1.5' is not a whole number"),
        ({"use_moe": 1}, "use_moe: '1' is neither true nor false"),
        ({"hidden_size": "auto"}, "hidden_size: 'auto' is not a whole number of at least 1"),
        ({"hidden_size": True}, "hidden_size: 'true' is not a whole number"),
        ({"time_limit": "long"}, "time_limit: 'long' is not a duration"),
        ({"ep_size": 0}, "ep_size: 0 is too small"),
        ({"ep_sise": 2}, "bufudu.ep_sise: train.py has no such flag.\n     Did you mean ep_size?"),
        ({"zzzzzz": 2}, "The flags here are capacity_factor, dedup"),
        ({"data": "x.jsonl"}, "bufudu.data: belongs on the command line alone.\n     Take it out, and give --data."),
        ({"ep_size": [2]}, "bufudu.ep_size: [2] is not what belongs here.\n     Write a single value"),
        ([2], "bufudu: [2] is no block."),
    ],
)
def test_a_wrong_value_in_the_block_is_named(block, words):
    with pytest.raises(UserError) as caught:
        file_flags({"bufudu": block}, "x.json")
    assert str(caught.value).startswith("x.json")
    assert words in str(caught.value)


def test_everything_wrong_with_the_block_is_named_at_once():
    with pytest.raises(UserError) as caught:
        file_flags({"bufudu": {"epochs": -1, "ep_sise": 2, "use_moe": 1}}, "x.json")
    assert all(f"bufudu.{name}: " in str(caught.value) for name in ("epochs", "ep_sise", "use_moe"))


def test_the_block_of_the_file_for_split_experts():
    configs = Path(__file__).parents[4] / "ds_configs"
    assert file_flags(load(configs / "t4x2_ep2.json"), "x.json") == {"ep_size": 2}
    assert file_flags(load(configs / "t4x2.json"), "x.json") == {}
    assert file_flags(load(configs / "t4x2_ep2.json", ["bufudu.ep_size=null"]), "x.json") == {}


def test_a_message_about_the_block_stays_readable_whatever_it_holds():
    with pytest.raises(UserError) as caught:
        file_flags({"bufudu": {f"zzzzz{i}\n": 1 for i in range(300)} | {"output": "x" * 2000}}, "x.json")
    assert len(str(caught.value)) < 4500 and "The flags here are capacity_factor" in str(caught.value)


@pytest.mark.parametrize("name", ["deepspeed_config", "set", "plan", "data"])
def test_the_block_cannot_give_what_is_needed_before_it_is_read(name):
    assert name not in run_flags()


def test_the_model_names_every_size_that_does_not_fit():
    run = options(
        {"hidden_size": 65, "num_attention_heads": 4, "num_key_value_heads": 3, "num_experts_per_tok": 9, "ep_size": 3},
        {},
    )
    with pytest.raises(UserError) as caught:
        model_config(run, vocab_size=100, bos_id=1, eos_id=2, pad_id=0)
    for part in ("hidden_size 65", "num_key_value_heads 3", "num_experts_per_tok 9", "ep_size 3"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_longer_than_the_models_positions_make_room():
    run = options({"max_seq_len": 4096}, {})
    assert model_config(run, vocab_size=100, bos_id=1, eos_id=2, pad_id=0).max_position_embeddings == 4096
    run = options({"max_seq_len": 64}, {})
    assert model_config(run, vocab_size=100, bos_id=1, eos_id=2, pad_id=0).max_position_embeddings == 2048


def test_positions_shorter_than_a_row_are_refused():
    run = options({"max_seq_len": 128, "max_position_embeddings": 64}, {})
    with pytest.raises(UserError, match=r"--max_position_embeddings 64: rows have 128 tokens"):
        model_config(run, vocab_size=600)


def test_every_shape_of_the_network_has_its_flag():
    assert set(command_line.model_flags()) == {
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "use_moe",
        "moe_intermediate_size",
        "num_experts",
        "num_experts_per_tok",
        "router_aux_loss_coef",
        "capacity_factor",
        "ep_size",
        "max_position_embeddings",
        "rope_theta",
        "rms_norm_eps",
        "initializer_range",
        "mask_documents",
    }


def test_defaults_are_the_design_documents():
    run = options({}, {})
    assert (run.epochs, run.max_seq_len, run.log_interval, run.sample_interval, run.save_interval, run.seed) == (
        5.0,
        512,
        50,
        None,
        1000,
        42,
    )
    assert (run.deepspeed_config, run.data, run.output, run.resume) == (None, [], None, "auto")
    assert run.model == {}
    assert options({"data": [Path("a")]}, {}).data == [Path("a")]


@pytest.mark.parametrize("name", ["rope_theta", "rms_norm_eps", "initializer_range"])
def test_a_size_of_zero_that_would_train_on_nan_is_refused(name):
    run = options({name: 0.0}, {})
    with pytest.raises(UserError, match=f"{name} is 0: give a number above 0"):
        model_config(run, vocab_size=100, bos_id=1, eos_id=2, pad_id=0)

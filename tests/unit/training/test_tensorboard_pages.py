"""TensorBoard's pages beside curves: charts of several tags, expert load as a picture, samples as text, HParams."""

import io

import pytest
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import metadata

from training.monitoring.tensorboard_pages import load_picture, sample_text, write_hparams


@pytest.mark.parametrize("experts", [2, 16, 64, 200])
def test_the_picture_has_a_cell_for_each_expert_in_the_colour_of_its_load(experts):
    load = [[2 / experts] + [0.0] * (experts - 2) + [1 - 2 / experts], [1 / experts] * experts]
    [value] = load_picture(load).value
    picture = Image.open(io.BytesIO(value.image.encoded_image_string))
    assert picture.size == (value.image.width, value.image.height) and picture.width <= 1200
    width = (picture.width - 76) // experts
    twice, none, even = (picture.getpixel((76 + width * k, top)) for k, top in ((0, 27), (1, 27), (0, 53)))
    if experts > 2:
        assert twice == (36, 92, 168) and none == (214, 120, 60)
    assert even == (244, 244, 240)


def test_samples_are_shown_as_they_are():
    text = sample_text([{"prompt": "# 标题", "text": "a*b* | <b>\n下一行"}])
    assert text == "**\\# 标题**a\\*b\\* \\| &lt;b&gt; 下一行"


def test_hparams_are_replaced_with_what_a_later_session_writes(tmp_path):
    settings = {"optimizer.params.lr": 1e-3, "optimizer.params.betas": [0.9, 0.95], "--use_moe": True}
    write_hparams(tmp_path, settings, {}, 0)
    write_hparams(tmp_path, settings, {"best_val_loss": 3.25}, 120)
    assert len(list((tmp_path / "hparams").iterdir())) == 1
    board = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    [event] = board.Tensors("hparams", "best_val_loss")
    assert event.step == 120
    content = board.SummaryMetadata("hparams", metadata.SESSION_START_INFO_TAG).plugin_data.content
    found = metadata.parse_session_start_info_plugin_data(content).hparams
    assert found["optimizer.params.lr"].number_value == 1e-3 and found["--use_moe"].string_value == "true"
    assert found["optimizer.params.betas"].string_value == "[0.9, 0.95]"
    assert "custom_scalars__config__" in board.Runs()["hparams"]["tensors"]

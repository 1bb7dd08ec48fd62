"""What TensorBoard shows beside curves: charts that overlay several, expert load as a picture, HParams."""

from __future__ import annotations

import html
import io
import json
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from common.files import replace_bytes

# A list of tags, as regular expressions, is a chart of the page "Custom scalars"
LAYOUT = {
    "Loss": {
        "nats a token, beside the n-gram baselines": [
            "Multiline",
            ["^train/loss$", "^val/loss$", "^baselines/unigram$", "^baselines/bigram$", "^baselines/trigram$"],
        ],
        "bits a byte": ["Multiline", ["^train/bits_per_byte$", "^val/bits_per_byte$"]],
    },
    "Repetition, beside that of the true text": {
        name: ["Multiline", [f"^repetition/{name}$", f"^repetition/true_{name}$"]]
        for name in ("repetition", "copying", "distinct_2", "loops")
    },
}
HPARAMS = "hparams"  # the folder below a run's
_CELL, _LABELS, _WIDEST = (64, 26), 76, 1024  # pixels
_FEW, _EVEN, _MANY = (214, 120, 60), (244, 244, 240), (36, 92, 168)  # colours of no load, of an even one, of twice that


def load_picture(load: list[list[float]]) -> Any:
    """Return a Summary with a table as a picture: a row a layer, the share of its routes that each expert has.

    White is an even load, blue more, orange less; up to 16 experts have their share in percent in their cells.
    """
    experts, (width, height) = len(load[0]), _CELL
    width = min(width, max(4, _WIDEST // experts))
    font: Any = ImageFont.load_default(15)
    size = (_LABELS + width * experts, height * (len(load) + 1))
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    draw.text((4, height / 2), f"% of routes; even: {100 / experts:.3g}", "black", font, anchor="lm")
    for layer, shares in enumerate(load):
        top = height * (layer + 1)
        draw.text((4, top + height / 2), f"layer {layer}", "black", font, anchor="lm")
        for expert, share in enumerate(shares):
            left, excess = _LABELS + width * expert, share * experts - 1
            far, weight = (_MANY if excess > 0 else _FEW), min(1.0, abs(excess))
            colour = tuple(round(a + (b - a) * weight) for a, b in zip(_EVEN, far, strict=True))
            draw.rectangle((left, top, left + width - 2, top + height - 2), colour)
            if width == _CELL[0]:
                ink = "white" if excess > 0.6 else "black"
                draw.text((left + width / 2, top + height / 2), f"{100 * share:.1f}", ink, font, anchor="mm")
    png = io.BytesIO()
    picture.save(png, "PNG")
    image = Summary.Image(encoded_image_string=png.getvalue(), colorspace=3, width=size[0], height=size[1])
    return Summary(value=[Summary.Value(tag="expert_load", image=image)])


def sample_text(rows: list[dict[str, str]]) -> str:
    """Return prompts in bold with their continuations, as the Markdown that TensorBoard's page of texts takes."""
    return "\n\n".join(f"**{_plain(row['prompt'])}**{_plain(row['text'])}" for row in rows)


def _plain(text: str) -> str:
    """Return text as Markdown that shows it as it is, on one line."""
    return html.escape(
        "".join(f"\\{c}" if c in "\\`*_{}[]()#+-.!|" else c for c in " ".join(text.split())), quote=False
    )


def write_hparams(run: Path, settings: dict[str, Any], figures: dict[str, float], step: int) -> None:
    """Write a run's settings and final figures for the page HParams, and LAYOUT, in place of those written before.

    They are in a folder of their own beside that of the curves, so that these figures and no others are columns of the
    page.
    """
    values = {
        name: value if type(value) in (int, float, str) else json.dumps(value) for name, value in settings.items()
    }
    _, start, end = summary.hparams(values, {})
    scalars = (summary.scalar(name, value) for name, value in figures.items())
    events = [Event(wall_time=time.time(), file_version="brain.Event:2")]
    for each in (summary.custom_scalars(LAYOUT), start, *scalars, end):
        events.append(Event(wall_time=time.time(), step=step, summary=each))
    records = io.BytesIO()
    for event in events:
        RecordWriter(records).write(event.SerializeToString())
    folder = run / HPARAMS
    folder.mkdir(parents=True, exist_ok=True)
    before = list(folder.glob("events.out.tfevents.*"))
    # under a new name: a TensorBoard that is watching reads on in the next file
    replace_bytes(folder / f"events.out.tfevents.{time.time():.6f}", [records.getvalue()])
    for path in before:
        path.unlink()

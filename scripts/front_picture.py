"""The README's picture, docs/front.png: one question to the tiny model, drawn by the tool.

python scripts/front_picture.py
"""

import tempfile
from pathlib import Path
from typing import Any

from hookedvid import HookedVideoLLM, Knockout
from hookedvid.data.item import read_items, video_path
from hookedvid.data.shapes import make_dataset
from hookedvid.report import plots
from hookedvid.sweep import sweep

OUT = Path(__file__).parents[1] / "docs" / "front.png"
QUESTION = "which object vanishes ?"


def picture(folder: str | Path) -> Any:
    """A clip's frames, where the prompt's text looks on them, what hiding each from it costs the right answer."""
    model = HookedVideoLLM.from_pretrained("tiny")
    path = make_dataset(folder, seed=4, split="test", n_videos=7, questions_per_video=6)
    item = next(i for i in read_items(path) if i.question == QUESTION)
    inputs = model.prepare(video_path(item, path), item.question, item.options)
    right = inputs.option_tokens[0][item.answer]
    cuts = [[], *([Knockout(step, "text")] for step in inputs.layout.step_names)]
    ((intact, *cut),) = sweep(model, [inputs], cuts, read=lambda _, logits: logits[-1].log_softmax(-1)[right])
    return plots.over_frames(
        inputs, model.attention(inputs, queries="text"),
        cost=[float(intact - one) for one in cut], cost_label="log-prob. lost, nats",
        title=f"“{item.question}” {', '.join(item.options)}: {item.options[item.answer]} is right",
        about="tiny, 8 frames, float32, sdpa, n = 1 question",
    )  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(plots.save(picture(folder), OUT, dpi=160))

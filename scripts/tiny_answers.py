"""The tiny model's answers to many made clips under every condition of the default study, as a small file.

`python scripts/tiny_answers.py` asks 300 held-out clips (three questions each, six minutes on two cores) and writes
tests/study/tiny_answers.json: conditions, items, and of each condition the right answers as bits in hexadecimal. What
an adaptive study of them spends, and whether it says the same, is read from it without a model.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from hookedvid import HookedVideoLLM
from hookedvid.data.item import read_items
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.study.definition import Study, describe, plan
from hookedvid.study.run import run

FILE = Path(__file__).parents[1] / "tests" / "study" / "tiny_answers.json"
N_VIDEOS, QUESTIONS = 300, 3


def main() -> None:
    """Writes the file."""
    with TemporaryDirectory() as folder:
        asked = make_dataset(folder, seed=0, split="test", n_videos=N_VIDEOS, questions_per_video=QUESTIONS)
        items = read_items(asked)
        model = HookedVideoLLM.from_pretrained("tiny")
        laid = plan(Study(), model, asked)
        rows = {(r["item"], r["condition"]): bool(r["correct"]) for r in run(laid, model, Path(folder) / "out")}
    right = np.array([[rows[item.id, c.label] for item in items] for c in laid.conditions])
    number = {video: i for i, video in enumerate(dict.fromkeys(item.video for item in items))}
    data = {
        "about": f"{describe(laid.settings)}; {len(items)} questions on {N_VIDEOS} videos",
        "conditions": [c.label for c in laid.conditions],
        "items": [[number[item.video], item.family] for item in items],
        "right": [np.packbits(line).tobytes().hex() for line in right],
    }
    FILE.write_text(json.dumps(data, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

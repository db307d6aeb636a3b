"""How good the tiny model is, asked as any user asks it: real mp4 files through `prepare` and `answers`."""

import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from hookedvid.data.item import Item, read_items, video_path
from hookedvid.data.shapes.clips import held_out, make_dataset
from hookedvid.data.shapes.questions import FAMILY
from hookedvid.study.definition import Study, plan
from hookedvid.study.results.summary import Outcomes, summarise
from hookedvid.study.run.tasks import run
from hookedvid.values.inputs import VideoInputs

N_VIDEOS, QUESTIONS = 250, 8


class Score(NamedTuple):
    """Right answers out of `n`, with the clip and without any video."""

    seen: int
    blind: int
    n: int


def measure(model: Any, seed: int) -> tuple[dict[str, Score], dict[str, Score]]:
    """Scores by family and by kind of question on the test split of made mp4 files."""
    hits: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = make_dataset(folder, seed=seed, split="test", n_videos=N_VIDEOS, questions_per_video=QUESTIONS)
        items = read_items(path)
        for name, videos in (("seen", True), ("blind", False)):
            for item, right in zip(items, _asked(model, items, path, videos), strict=True):
                for group in (item.family, str(item.meta["kind"])):
                    hits[group, name] += right
                    hits[group, "n"] += videos
    scores = {group: Score(*(hits[group, name] for name in Score._fields)) for group, _ in hits}
    families = dict.fromkeys(FAMILY.values())
    return {f: scores[f] for f in families}, {k: scores[k] for k in FAMILY if k in scores}


def _asked(model: Any, items: list[Item], annotations: Path, videos: bool, batch: int = 32) -> Iterable[bool]:
    for start in range(0, len(items), batch):
        some = items[start : start + batch]
        inputs = VideoInputs.stack(
            [model.prepare(video_path(i, annotations) if videos else None, i.question, i.options) for i in some]
        )
        for item, answer in zip(some, model.answers(inputs), strict=True):
            yield answer.index == item.answer


def study_accuracies(model: Any) -> list[tuple[str, int, float]]:
    """(group, n, accuracy) of the baseline of `hookedvid study`, on the clips it asks about unless told."""
    with tempfile.TemporaryDirectory() as folder:
        laid = plan(Study(protocols=("baseline",)), model, held_out(folder))
        rows = run(laid, model, Path(folder) / "rows")
    found = summarise(Outcomes(laid.items, laid.conditions, rows))
    return [(s.group, s.n, s.accuracy.value) for s in found]


CARD = """# tiny

A Video-LLM of {parameters:.1f} M parameters, trained from nothing on made clips, so that every command and
example of hookedvid runs offline. It knows coloured shapes that move, appear, vanish and change colour, and
nothing else: {words} words.

* Tower: CLIP-style, {vision.n_layers} blocks of width {vision.d_model}, {vision.n_patches} patches of a
  {vision.image_size} x {vision.image_size} frame; two-layer projector; Qwen2-style decoder, {lm.n_layers} blocks of
  width {lm.d_model}, {lm.n_heads} heads on {lm.n_kv_heads} key-value heads. {n_frames} frames.
* Prompt: `<bos> video` VIDEO `question what color is the circle ? A red B blue C green D white answer`; the next
  token is the letter. Without options the prompt ends with `?`, and the next token is the answer's word;
  after `describe` comes a caption.
* Made by `{command}`: {trained}. Data, model and training are in this repository; no other data was used.

Right letters among four (chance 25 %) in {dtype}, kernel {kernel}, on held-out H.264 clips.

As `hookedvid study --protocol baseline` measures it:

| questions | n | accuracy |
|---|---|---|
{study_rows}

On a larger set ({n_videos} clips of the test split, seed {seed}). "Blind" is the same model asked without a video.

| questions | n | right | blind |
|---|---|---|---|
{rows}

The data are balanced: nothing but the `language` family can be answered from its wording, and "how many" has
each answer equally often.
"""


def card(model: Any, seed: int, command: str, trained: str) -> str:
    """The model card, measured now."""
    families, kinds = measure(model, seed)
    rows = [(f"**{name}**", score) for name, score in families.items()]
    rows += list(kinds.items())
    return CARD.format(
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        words=model.cfg.d_vocab,
        vision=model.cfg.vision,
        lm=model.cfg.lm,
        n_frames=model.cfg.n_frames,
        command=command,
        trained=trained,
        n_videos=N_VIDEOS,
        seed=seed,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        kernel=model.kernel,
        study_rows="\n".join(f"| {group} | {n} | {accuracy:.1%} |" for group, n, accuracy in study_accuracies(model)),
        rows="\n".join(f"| {name} | {s.n} | {s.seen / s.n:.3f} | {s.blind / s.n:.3f} |" for name, s in rows),
    )

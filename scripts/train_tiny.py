"""Train the tiny Video-LLM that ships in weights/tiny, from nothing, on made videos.

    python scripts/train_tiny.py --minutes 120 --run runs/tiny --out weights/tiny

Three stages: the tower on dense labels, everything on single frames, everything on videos; a batch of
text-only questions goes with every step of the last two. The same --run continues where it stopped. Batches
are functions of (seed, stage, step), so no generator state is kept. Needs no GPU: one thread does a step in
about 1.4 s.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hookedvid.data.shapes.clips import stream
from hookedvid.data.shapes.questions import FAMILY, KINDS
from hookedvid.data.shapes.render import render
from hookedvid.data.shapes.scene import N_FRAMES, sample_scenes
from hookedvid.data.shapes.words import PREFIX, TOKEN, tokenizer
from tiny_card import card
from tiny_forward import Packing, read, tower_features, video_tokens
from tiny_recipe import CONFIG, CellHead, Optimiser, initialise, text_loss
from training_batches import (
    CAPTION,
    CHOICE,
    FORMS,
    OPEN,
    Plan,
    Texts,
    cells,
    codec_noise,
    language_batch,
    video_batch,
)

TALLY_EVERY = 25
CHECKPOINT_EVERY = 100
EXAM_EVERY = 250
PREFIX_IDS = torch.tensor([TOKEN[word] for word in PREFIX.split()])


def _cpu_seconds() -> float:
    return time.process_time() / torch.get_num_threads()


class Stage(NamedTuple):
    """One part of the training and its share of the time."""

    name: str
    share: float
    batch: int
    plan: Plan
    still: bool = False


STAGES = (
    Stage("tower", 0.05, 128, Plan(0, 0, 0)),
    Stage("image", 0.10, 24, Plan(6, 1, 1), still=True),
    Stage("video", 0.85, 32, Plan(6, 1, 1)),
)
# Facts come with every step's text-only batch.
WEIGHTS = {"fact": 0.3}
LANGUAGE_BATCH, LANGUAGE_PLAN = 12, Plan(8, 0, 0)


def packing(plan: Plan, n_video: int) -> Packing:
    groups = tuple((n, length) for n, length in zip(plan, (CHOICE, OPEN, CAPTION), strict=True) if n)
    return Packing(len(PREFIX_IDS) + n_video, groups)


def answer_texts(model: nn.Module, texts: Texts, plan: Plan, frames: np.ndarray | None) -> Tensor:
    """Logits at every scored position of packed texts, after a video or without one."""
    parts = [model.embed(PREFIX_IDS).expand(len(texts.tokens), -1, -1)]
    if frames is not None:
        parts.append(video_tokens(model, torch.from_numpy(frames)))
    n_video = sum(part.shape[1] for part in parts) - len(PREFIX_IDS)
    parts.append(model.embed(torch.from_numpy(texts.tokens)))
    return read(model, torch.cat(parts, 1), packing(plan, n_video), torch.from_numpy(texts.scored))


class Tally:
    """Right answers by form of the question and by family or kind, since the last report."""

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def add(self, logits: Tensor, texts: Texts, prefix: str = "") -> None:
        """Count a batch; captions count by the word."""
        right = logits.argmax(-1).numpy() == texts.target
        for form, kind in {*zip(texts.form.flat, texts.kind.flat, strict=True)} - {(-1, -1)}:
            here = (texts.form == form) & (texts.kind == kind)
            groups = ["all"] if kind < 0 else {KINDS[kind], FAMILY[KINDS[kind]]}
            for group in groups:
                count = self.counts[f"{prefix}{FORMS[form]}/{group}"]
                count[0] += int(right[here].sum())
                count[1] += int(here.sum())

    def report(self) -> dict[str, float]:
        """The shares of right answers since the last report."""
        found = {name: round(hit / n, 3) for name, (hit, n) in sorted(self.counts.items()) if n}
        self.counts.clear()
        return found


class Run:
    """A training run's folder: its log, its last checkpoint and how long it has taken."""

    def __init__(self, folder: Path, minutes: float):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.minutes = folder, minutes
        self.spent = 0.0  # seconds in earlier processes
        self.began = _cpu_seconds()

    @property
    def seconds(self) -> float:
        """Training time so far, earlier processes included.

        Processor time, so that a busy machine makes a run longer and not worse.
        """
        return self.spent + _cpu_seconds() - self.began

    def log(self, **entry: Any) -> None:
        """Append a line to log.jsonl, and print it."""
        entry = {"s": round(self.seconds, 1), **entry}
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)

    def save(self, model: nn.Module, optimiser: Optimiser | None, **where: Any) -> None:
        """Replace the checkpoint; it appears whole or not at all."""
        part = self.folder / "checkpoint.pt.part"
        states = None if optimiser is None else optimiser.state_dict()
        torch.save({"model": model.state_dict(), "optimiser": states, "seconds": self.seconds, **where}, part)
        part.replace(self.folder / "checkpoint.pt")

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, tensors and plain values only; None where there is none."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return None
        state = torch.load(path, weights_only=True)
        self.spent, self.began = state["seconds"], _cpu_seconds()
        return state

    def summary(self) -> str:
        """How many steps each stage took, for the model card."""
        lines = (self.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        last = {entry["stage"]: entry["step"] for entry in map(json.loads, lines)}
        steps = ", ".join(f"{last[stage.name]} {stage.name} steps of {stage.batch}" for stage in STAGES)
        return f"{steps}; {self.seconds / 60:.0f} minutes of processor time"


def rate(step: int, done: float) -> float:
    """Learning-rate factor: 50 steps up, flat, then straight down to 2 % over the last half of the time."""
    return min(1.0, (step + 1) / 50) * min(1.0, 0.02 + 1.96 * (1 - done))


def train_tower(run: Run, model: nn.Module, stage: Stage, seed: int) -> None:
    """Teach the tower alone which object lies in each patch; starts over when interrupted."""
    head = CellHead(CONFIG.vision.d_model, CONFIG.vision.grid, seed)
    parameters = [*model.vision.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.02)
    for step, done in steps(run, stage, first=0, start=run.seconds):
        rng = stream(seed, "train", 0, step)
        # Two frames of each clip: as many different scenes as the time of drawing them allows.
        scenes = sample_scenes(rng, stage.batch // 2)
        scenes = scenes.at(rng.integers(0, N_FRAMES, size=(len(scenes), 2)))
        frames = render(rng, scenes)
        frames[::2] = codec_noise(rng, frames[::2])
        labels = [torch.from_numpy(x).flatten(0, 1) for x in cells(scenes, CONFIG.vision.grid)]
        with torch.autocast("cpu", torch.bfloat16):
            features = tower_features(model, torch.from_numpy(frames))
        loss, right = head(features, *labels)
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * rate(step, done)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if step % TALLY_EVERY == TALLY_EVERY - 1:
            run.log(stage=stage.name, step=step + 1, loss=round(loss.item(), 4), **right)


def train_texts(run: Run, model: nn.Module, stage: Stage, seed: int, first: int, start: float, states: Any) -> None:
    """Teach everything on texts about videos (or frames), with a text-only batch in every step."""
    optimiser = Optimiser(model)
    if states is not None:
        optimiser.load_state_dict(states)
    tally, number = Tally(), STAGES.index(stage)
    for step, done in steps(run, stage, first, start):
        rng = stream(seed, "train", number, step)
        frames, texts = video_batch(rng, stage.batch, stage.plan, still=stage.still, weights=WEIGHTS)
        words = language_batch(rng, LANGUAGE_BATCH, LANGUAGE_PLAN)
        with torch.autocast("cpu", torch.bfloat16):
            seen = answer_texts(model, texts, stage.plan, frames)
            said = answer_texts(model, words, LANGUAGE_PLAN, None)
        loss = text_loss(seen, texts) + text_loss(said, words)
        norm = optimiser.step(loss, rate(step, 0.0 if stage.still else done))
        tally.add(seen, texts)
        tally.add(said, words, "blind ")
        if step % TALLY_EVERY == TALLY_EVERY - 1:
            run.log(
                stage=stage.name,
                step=step + 1,
                loss=round(loss.item(), 3),
                norm=round(norm, 2),
                **tally.report(),
            )
        if step % CHECKPOINT_EVERY == CHECKPOINT_EVERY - 1:
            run.save(model, optimiser, stage=number, step=step + 1, start=start)
        if not stage.still and step % EXAM_EVERY == EXAM_EVERY - 1:
            run.log(stage="exam", step=step + 1, **examine(model, seed))


def steps(run: Run, stage: Stage, first: int, start: float) -> Iterator[tuple[int, float]]:
    """Step numbers of a stage with the part of its time that is over; `start` is when the stage began."""
    step, length = first, stage.share * run.minutes * 60
    while (done := (run.seconds - start) / length) < 1:
        yield step, done
        step += 1


@torch.no_grad()
def examine(model: nn.Module, seed: int, n: int = 256) -> dict[str, float]:
    """Letter accuracy on made frames of the validation split, by family and kind."""
    tally, plan = Tally(), Plan(8, 0, 0)
    for part in range(n // 32):
        frames, texts = video_batch(stream(seed, "val", 0, part), 32, plan)
        with torch.autocast("cpu", torch.bfloat16):
            tally.add(answer_texts(model, texts, plan, frames), texts)
    return tally.report()


def build() -> nn.Module:
    from hookedvid.model.hooked_video_llm import HookedVideoLLM

    return HookedVideoLLM(CONFIG, tokenizer()).requires_grad_()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/tiny"), help="folder of log and checkpoint")
    parser.add_argument("--out", type=Path, default=Path("weights/tiny"))
    parser.add_argument("--minutes", type=float, default=120.0, help="processor time, earlier processes included")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run = Run(args.run, args.minutes)
    state = run.load()
    model = build()
    initialise(model, args.seed)
    if state is None:
        train_tower(run, model, STAGES[0], args.seed)
        state = {"stage": 1, "step": 0, "start": run.seconds, "optimiser": None}
        run.save(model, **state)
    else:
        model.load_state_dict(state["model"])
    for number in range(state["stage"], len(STAGES)):
        train_texts(run, model, STAGES[number], args.seed, state["step"], state["start"], state["optimiser"])
        state = {"stage": number + 1, "step": 0, "start": run.seconds, "optimiser": None}
        run.save(model, **state)
    model.save_pretrained(args.out)
    command = f"python scripts/train_tiny.py --minutes {args.minutes:g} --seed {args.seed}"
    trained = f"{run.summary()} on {args.threads} thread(s), bfloat16 autocast"
    (args.out / "README.md").write_text(card(model, args.seed, command, trained), encoding="utf-8")


if __name__ == "__main__":
    main()

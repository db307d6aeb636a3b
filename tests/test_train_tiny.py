"""The tiny model's training reads what the model reads at inference, and goes on where it stopped."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
train_tiny = pytest.importorskip("train_tiny", reason="scripts/ is not part of an installed package")

from hookedvid.data.shapes.clips import stream  # noqa: E402
from hookedvid.data.shapes.words import VOCABULARY  # noqa: E402
from training_batches import FORMS, Plan, layout, video_batch  # noqa: E402


@pytest.fixture(scope="module")
def model():
    model = train_tiny.build()
    train_tiny.initialise(model, seed=0)
    return model


def test_packed_training_pass_equals_asking_one_by_one(model):
    plan = Plan(2, 1, 0)
    frames, texts = video_batch(stream(0, "train", 1), 2, plan)
    with torch.no_grad():
        packed = train_tiny.answer_texts(model, texts, plan, frames)
    text, place = layout(plan)
    checked = 0
    for row in range(2):
        for n in range(3):
            words = [VOCABULARY[t] for t in texts.tokens[row][text == n]]
            end = words.index("?")
            question, options = " ".join(words[1 : end + 1]), words[end + 2 : end + 9 : 2] if n < 2 else []
            with torch.no_grad():
                logits = model(model.prepare(frames[row], question, options))[0]
            first = logits.shape[0] - (end + 1 + (9 if options else 0))
            for column in np.flatnonzero(text[texts.scored[row]] == n):
                if texts.form[row, column] == FORMS.index("caption"):
                    continue  # the end of an open answer: its word is no part of the prompt
                alone = logits[first + place[texts.scored[row, column]]]
                # Softmax over keys in another order: rounding of float32.
                assert torch.allclose(packed[row, column], alone, atol=2e-5)
                checked += 1
    assert checked == 10


def test_first_values_are_a_function_of_the_seed(model):
    other = train_tiny.build()
    train_tiny.initialise(other, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_stopped_run_goes_on_bitwise(tmp_path, monkeypatch):
    stage = train_tiny.Stage("video", 1.0, 2, Plan(1, 0, 0))
    monkeypatch.setattr(train_tiny, "STAGES", (stage,))
    monkeypatch.setattr(train_tiny, "CHECKPOINT_EVERY", 1)
    monkeypatch.setattr(train_tiny, "LANGUAGE_BATCH", 1)

    def trained(folder, *stops):
        for stop in stops:

            def counted(run, stage, first, start, stop=stop):
                """Steps up to a stop, half of the time each: a clock would differ from run to run."""
                return ((step, step / 2) for step in range(first, stop))

            monkeypatch.setattr(train_tiny, "steps", counted)
            run = train_tiny.Run(tmp_path / folder, minutes=1.0)
            model = train_tiny.build()
            train_tiny.initialise(model, seed=0)
            state = run.load() or {"step": 0, "start": 0.0, "optimiser": None}
            if "model" in state:
                model.load_state_dict(state["model"])
            train_tiny.train_texts(run, model, stage, 0, state["step"], state["start"], state["optimiser"])
        return model

    whole, halves = trained("whole", 2), trained("halves", 1, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), halves.parameters(), strict=True))

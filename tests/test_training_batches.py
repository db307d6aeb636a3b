"""Training batches: packed texts are the prompts read at inference, and counting is not given away."""

import itertools
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
pytest.importorskip("training_batches", reason="scripts/ is not part of an installed package")

from hookedvid.data.item import video_path
from hookedvid.data.shapes.clips import in_between, make_dataset, make_items, stream
from hookedvid.data.shapes.questions import FACTS, KINDS, caption, questions
from hookedvid.data.shapes.render import render
from hookedvid.data.shapes.scene import COUNT_SHARE, N_FRAMES, sample_scenes, things
from hookedvid.data.shapes.words import LETTERS, NUMBERS, PREFIX, SPECIALS, VOCABULARY, tokenizer
from hookedvid.video.frames import read_clip
from training_batches import (
    CHOICES,
    COUNT_KEPT,
    FORMS,
    PATCH,
    Plan,
    cells,
    choice_prompt,
    codec_noise,
    language_batch,
    layout,
    open_prompt,
    video_batch,
)


def texts_of(batch, plan):
    """Each row's packed texts as words, padding left out."""
    text, _ = layout(plan)
    return [
        [[VOCABULARY[t] for t in row[text == n] if VOCABULARY[t] != "<pad>"] for n in range(sum(plan))]
        for row in batch.tokens
    ]


def test_packed_texts_are_the_prompts_with_the_reply_next():
    plan = Plan(3, 2, 1)
    frames, batch = video_batch(np.random.default_rng(0), 16, plan)
    assert frames.shape == (16, N_FRAMES, 64, 64, 3) and frames.dtype == np.uint8
    scenes = sample_scenes(np.random.default_rng(0), 16)
    for row, texts in enumerate(texts_of(batch, plan)):
        known = {q.text: q.answer for q in (*questions(things(scenes, row)), *FACTS)}
        replies = replies_of(batch, row, plan)
        for n, words in enumerate(texts[:5]):
            end = words.index("?")
            question = " ".join(words[1 : end + 1])
            assert replies[n].pop(end) == known[question]
            if n < 3:
                options = tuple(words[end + 2 : -1 : 2])
                assert " ".join(words) == choice_prompt(question, options)
                assert options[LETTERS.index(replies[n].pop(len(words) - 1))] == known[question]
            else:
                assert " ".join(words) == f"{open_prompt(question)} {known[question]}"
                assert replies[n].pop(len(words) - 1) == "<eos>"
            assert not replies[n]
        assert texts[5] == ["describe", *caption(things(scenes, row))]
        assert list(replies[5].values()) == [*texts[5][1:], "<eos>"]


def replies_of(batch, row, plan):
    """For each text of a row, the word that should follow at each scored place in it."""
    text, place = layout(plan)
    replies = [{} for _ in range(sum(plan))]
    for position, target, form in zip(batch.scored[row], batch.target[row], batch.form[row], strict=True):
        if form >= 0:
            replies[text[position]][int(place[position])] = VOCABULARY[target]
    return replies


def test_forms_and_kinds_say_what_is_scored():
    _, batch = video_batch(np.random.default_rng(0), 16, Plan(3, 2, 1))
    letters = np.isin(batch.target, [VOCABULARY.index(x) for x in LETTERS]) & (batch.form >= 0)
    assert np.array_equal(letters, batch.form == FORMS.index("letter"))
    assert np.array_equal(batch.kind >= 0, (batch.form >= 0) & (batch.form != FORMS.index("caption")))
    assert ((batch.form == FORMS.index("letter")).sum(1) == 3).all()
    assert ((batch.form == FORMS.index("word")).sum(1) == 5).all()


def test_batches_are_a_function_of_their_stream():
    one, two = (video_batch(stream(0, "train", 5), 4, Plan(2, 1, 1)) for _ in range(2))
    assert np.array_equal(one[0], two[0])
    assert all(np.array_equal(a, b) for a, b in zip(one[1], two[1], strict=True))


def test_how_many_is_as_often_one_as_four_in_training():
    counts = Counter()
    for part in range(2):
        _, batch = video_batch(np.random.default_rng(part), 128, Plan(0, 2, 0))
        counts.update(VOCABULARY[t] for t in batch.target[batch.kind == KINDS.index("count")])
    n = sum(counts.values())
    assert n > 100 and sum((counts[w] - n / 4) ** 2 / (n / 4) for w in NUMBERS) < 16.3  # chi2(3), p = 0.001


def test_weights_make_kinds_rarer():
    _, batch = video_batch(np.random.default_rng(0), 64, Plan(0, 2, 0), weights={"fact": 1e-3, "count": 0.0})
    assert (batch.kind == KINDS.index("count")).sum() == 0
    assert (batch.kind == KINDS.index("fact")).sum() < 6  # where a clip offers nothing else


def test_language_batches_ask_facts_and_choices():
    plan = Plan(2, 2, 0)
    batch = language_batch(np.random.default_rng(0), 50, plan)
    assert set(np.unique(batch.kind)) == {-1, KINDS.index("fact"), KINDS.index("choose")}
    known = {q.text for q in (*FACTS, *CHOICES)}
    for texts in texts_of(batch, plan):
        assert all(" ".join(words[1 : words.index("?") + 1]) in known for words in texts)


def test_cells_point_at_the_objects():
    scenes = sample_scenes(np.random.default_rng(0), 40)
    labels = cells(scenes, 4)
    for row, k, t in itertools.product(range(len(scenes)), range(4), range(N_FRAMES)):
        if not scenes.visible[row, k, t]:
            continue
        x, y = scenes.center[row, k, t]
        column, line = x // PATCH, y // PATCH
        here = (scenes.center[row, :, t] // PATCH == (column, line)).all(1) & scenes.visible[row, :, t]
        if here.sum() > 1:
            continue
        patch = line * 4 + column
        assert labels.shape[row, t, patch] == scenes.shape[row, k] + 1
        assert labels.color[row, t, patch] == scenes.color[row, k, t] + 1
        assert (labels.offset[row, t, patch] * 8 + 8 == (x % PATCH, y % PATCH)).all()
    assert ((labels.shape > 0).sum(2) <= scenes.visible.sum(1)).all()


def test_simulated_codec_noise_is_as_large_as_the_codecs(tmp_path):
    dataset = make_dataset(tmp_path, seed=3, split="val", n_videos=6, questions_per_video=4)
    scene, items = next(make_items(3, "val", 1, 4))
    drawn = render(stream(3, "val", 0, 1), in_between(scene))
    real = np.abs(read_clip(video_path(items[0], dataset), 15).frames.astype(int) - drawn[0]).mean()
    made = np.abs(codec_noise(np.random.default_rng(0), drawn).astype(int) - drawn).mean()
    assert 0.5 < made / real < 2


def test_asking_how_many_is_thinned_to_even_answers():
    assert np.allclose(COUNT_SHARE * COUNT_KEPT, COUNT_SHARE.min())
    counts = np.bincount(sample_scenes(np.random.default_rng(1), 5000).n, minlength=5)[1:]
    # Four standard deviations of a multinomial of 5,000.
    assert np.abs(counts - 5000 * COUNT_SHARE).max() < 4 * math.sqrt(5000 * 0.25)


def test_the_vocabulary_is_what_is_said_and_no_more():
    said = set(SPECIALS) | set("ABCD") | {"video", "question", "answer", "describe"}
    many = sample_scenes(np.random.default_rng(4), 1500)
    for row in range(len(many)):
        cast = things(many, row)
        said.update(caption(cast))
        for question in questions(cast):
            said.update(question.text.split(), question.pool)
    for question in (*FACTS, *CHOICES):
        said.update(question.text.split(), question.pool)
        assert question.answer in question.pool
    assert said == set(VOCABULARY) and len(said) == len(VOCABULARY)


def test_the_tokenizer_gives_prompts_back_word_for_word(tmp_path):
    words = tokenizer()
    words.save_pretrained(tmp_path)
    again = type(words).from_pretrained(tmp_path)
    for item in (item for _, items in make_items(0, "test", 40, 5) for item in items):
        prompt = f"{PREFIX} <video> {choice_prompt(item.question, item.options)}"
        ids = words(prompt).input_ids
        assert [VOCABULARY[i] for i in ids] == prompt.split()
        assert words.decode(ids) == prompt and again(prompt).input_ids == ids
    assert words("zebra").input_ids == [words.unk_token_id]
    assert len(words) == len(VOCABULARY)

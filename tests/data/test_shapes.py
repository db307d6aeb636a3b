"""The made videos: the same for the same seed, rightly answered, and unanswerable from their wording."""

import dataclasses
import itertools
import math
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from hookedvid.data.item import read_items, video_path
from hookedvid.data.shapes.clips import in_between, make_dataset, make_items, stream
from hookedvid.data.shapes.questions import FAMILY, KINDS, questions
from hookedvid.data.shapes.render import _RGB, render
from hookedvid.data.shapes.scene import N_FRAMES, sample_scenes, things
from hookedvid.data.shapes.words import (
    COLORS,
    DIRECTIONS,
    NUMBERS,
    PLACES,
    SHAPES,
    tokenizer,
)
from hookedvid.errors import DataError
from hookedvid.video.frames import read_clip

N_VIDEOS = 300


@pytest.fixture(scope="module")
def scenes():
    return sample_scenes(np.random.default_rng(0), 300)


def all_items(split, n_videos=N_VIDEOS):
    return [item for _, items in make_items(0, split, n_videos, 5) for item in items]


@pytest.fixture(scope="module")
def test_items():
    return all_items("test")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("shapes"), seed=3, split="val", n_videos=6, questions_per_video=4)


# ---- the same for the same seed --------------------------------------------------------------------------


def test_a_dataset_is_a_function_of_its_arguments(dataset, tmp_path):
    again = make_dataset(tmp_path, seed=3, split="val", n_videos=6, questions_per_video=4)
    items = read_items(dataset)
    assert read_items(again) == items
    for item in items:
        one, two = (read_clip(video_path(item, path), 15).frames for path in (dataset, again))
        assert np.array_equal(one, two)


def test_clips_do_not_depend_on_how_many_there_are():
    few, more = (list(make_items(0, "val", n, 3)) for n in (3, 8))
    assert [items for _, items in few] == [items for _, items in more[:3]]


def test_seeds_and_splits_are_streams_of_their_own():
    drawn = [stream(s, split).integers(2**62) for s in (0, 1) for split in ("train", "val", "test")]
    drawn += [stream(0, "train", 0).integers(2**62), stream(0, "train", 0, 0).integers(2**62)]
    assert len(set(drawn)) == len(drawn)


def test_nothing_to_make_is_refused():
    with pytest.raises(DataError, match="1 or more"):
        list(make_items(0, "val", 0, 5))


# ---- what the file shows ---------------------------------------------------------------------------------


def test_eight_sampled_frames_are_the_scene(scenes):
    between = in_between(scenes)
    sampled = between.at(np.tile(np.arange(0, 15, 2), (len(scenes), 1)))
    for field in ("color", "center", "visible"):
        assert np.array_equal(getattr(sampled, field), getattr(scenes, field))


def test_the_file_gives_back_what_was_rendered(dataset):
    for index, (scene, items) in enumerate(make_items(3, "val", 6, 4)):
        drawn = render(stream(3, "val", index, 1), in_between(scene))[0]
        clip = read_clip(video_path(items[0], dataset), N_FRAMES)
        assert clip.indices == tuple(range(0, 15, 2))
        # x264 drops some of the noise (sigma up to 8) and half the colour resolution: 5.1 on average.
        assert np.abs(clip.frames.astype(int) - drawn[::2]).mean() < 9


def test_decoded_pixels_show_the_colors_of_the_scene(dataset):
    checked = 0
    for scene, items in make_items(3, "val", 6, 4):
        frames = read_clip(video_path(items[0], dataset), N_FRAMES).frames
        for k, t in itertools.product(range(4), range(N_FRAMES)):
            hollow = SHAPES[scene.shape[0, k]] == "ring"
            if not scene.visible[0, k, t] or hollow or _covered(scene, k, t):
                continue
            x, y = scene.center[0, k, t]
            away = np.abs(_RGB - frames[t, y - 1 : y + 2, x - 1 : x + 2].mean((0, 1))).sum(1)
            assert away.argmin() == scene.color[0, k, t]
            checked += 1
    assert checked > 50


def _covered(scene, k, t):
    return any(
        scene.visible[0, other, t] and np.abs(scene.center[0, k, t] - scene.center[0, other, t]).max() < 12
        for other in range(k + 1, 4)
    )


# ---- right answers ---------------------------------------------------------------------------------------


class Story:
    """One object told by plain loops over frames, independently of `things`."""

    def __init__(self, scene, row, k):
        self.frames = [t for t in range(N_FRAMES) if scene.visible[row, k, t]]
        self.shape = SHAPES[scene.shape[row, k]]
        self.colors = [COLORS[scene.color[row, k, t]] for t in self.frames]
        self.path = [tuple(scene.center[row, k, t].tolist()) for t in self.frames]

    def named(self, phrase):
        word = phrase.split()[1]
        return word == self.shape or (phrase.endswith("object") and set(self.colors) == {word})

    def quarter(self, when):
        x, y = self.path[when]
        return ("bottom" if y >= 32 else "top") + "-" + ("right" if x >= 32 else "left")

    def way(self):
        (x0, y0), (x1, y1) = self.path[0], self.path[-1]
        return next((w for w, d in zip(DIRECTIONS, (x0 - x1, x1 - x0, y0 - y1, y1 - y0), strict=True) if d > 0), None)

    def gone(self):
        return self.frames[-1] < N_FRAMES - 1


def right_answers(question, cast):
    """Every word that answers the question, found by trying all objects."""
    phrase = (re.findall(r"the \w+ object|the \w+", question) or [""])[0]
    about = [s for s in cast if phrase and s.named(phrase)]
    patterns = {
        "how many objects": lambda: {NUMBERS[len(cast) - 1]},
        "what color is": lambda: {c for s in about for c in s.colors},
        "what shape is": lambda: {s.shape for s in about},
        "where is": lambda: {s.quarter(t) for s in about for t in range(len(s.path))},
        "which way": lambda: {s.way() for s in about},
        "where does .* start": lambda: {s.quarter(0) for s in about},
        "where does .* end": lambda: {s.quarter(-1) for s in about},
        "what color was": lambda: {s.colors[0] for s in about},
        "what color does .* become": lambda: {s.colors[-1] for s in about},
        "changes color": lambda: {s.shape for s in cast if len(set(s.colors)) > 1},
        "vanishes": lambda: {s.shape for s in cast if s.gone()},
        "appears first": lambda: {s.shape for s in cast if s.frames[0] == min(o.frames[0] for o in cast)},
        "appears last": lambda: {s.shape for s in cast if s.frames[0] == max(o.frames[0] for o in cast)},
    }
    [answer] = [found for pattern, found in patterns.items() if re.search(pattern, question)]
    return answer()


def test_every_answer_is_the_only_right_one(scenes):
    kinds = Counter()
    for row in range(len(scenes)):
        cast = [Story(scenes, row, k) for k in range(4) if scenes.visible[row, k].any()]
        for question in questions(things(scenes, row)):
            assert right_answers(question.text, cast) == {question.answer}, question
            kinds[question.kind] += 1
    assert set(kinds) == {k for k in KINDS if FAMILY[k] != "language"}


def test_an_object_is_seen_before_and_after_what_befalls_it(scenes):
    for row in range(len(scenes)):
        for thing in things(scenes, row):
            assert thing.appears <= N_FRAMES - 3
            assert thing.vanishes is None or thing.vanishes - thing.appears >= 2
    changes = scenes.color[:, :, :1] != scenes.color
    seen_before = (scenes.visible & ~changes).sum(2)[changes.any(2)]
    assert (seen_before[scenes.visible.any(2)[changes.any(2)]] >= 2).all()


def test_objects_never_share_a_name(scenes):
    for row in range(len(scenes)):
        cast = things(scenes, row)
        colors = [c for t in cast for c in (t.color, t.new_color) if c]
        assert len(set(colors)) == len(colors) and len({t.shape for t in cast}) == len(cast)


# ---- balance, and nothing to be had from the wording -----------------------------------------------------


def test_options_are_four_words_of_one_sort_with_the_answer_at_its_place(test_items):
    sorts = [set(s) for s in (COLORS, SHAPES, DIRECTIONS, PLACES, NUMBERS)]
    for item in test_items:
        assert len(set(item.options)) == 4 and any(set(item.options) <= sort for sort in sorts)
        assert item.family == FAMILY[item.meta["kind"]]


def test_families_golds_and_counts_are_even(test_items):
    families = Counter(item.family for item in test_items)
    each = [families[f] for f in ("static", "temporal", "language")]  # "count" is asked once a clip at most
    assert max(each) - min(each) <= 2
    golds = Counter((item.meta["kind"], item.answer) for item in test_items)
    for kind in {item.meta["kind"] for item in test_items}:
        each = [golds[kind, place] for place in range(4)]
        assert max(each) - min(each) <= 1
    counts = Counter(item.options[item.answer] for item in test_items if item.family == "count")
    assert set(counts) == set(NUMBERS) and max(counts.values()) - min(counts.values()) <= 1


class Blind:
    """Naive Bayes on everything but the video: which option is right, given the words around it."""

    def __init__(self, items):
        self.seen = {True: Counter(), False: Counter()}
        self.total = Counter()
        for item in items:
            for place in range(4):
                right = place == item.answer
                self.total[right] += 1
                self.seen[right].update(self.features(item, place))

    def features(self, item, place):
        option, others = item.options[place], [o for o in item.options if o != item.options[place]]
        yield "place", place
        yield "option", item.meta["kind"], option
        yield "text", item.question, option
        for other in others:
            yield "pair", item.meta["kind"], option, other

    def guess(self, item):
        def score(place):
            return sum(
                math.log((self.seen[True][f] + 1) / (self.total[True] + 4))
                - math.log((self.seen[False][f] + 3) / (self.total[False] + 12))
                for f in self.features(item, place)
            )

        return max(range(4), key=score)

    def surprise(self, items):
        """Standard deviations above chance, by family."""
        right, n = Counter(), Counter()
        for item in items:
            n[item.family] += 1
            right[item.family] += self.guess(item) == item.answer
        return {f: (right[f] - n[f] / 4) / math.sqrt(n[f] * 3 / 16) for f in n}


@pytest.fixture(scope="module")
def train_items():
    return all_items("train", 2 * N_VIDEOS)


def test_a_blind_reader_learns_the_control_family_alone(train_items, test_items):
    surprise = Blind(train_items).surprise(test_items)
    assert surprise.pop("language") > 20
    assert set(surprise) == {"static", "count", "temporal"}
    assert max(surprise.values()) < 3.5


def test_the_blind_reader_would_notice_a_leak(train_items, test_items):
    """Three answers in ten moved to the option that comes first in the alphabet."""

    def leaky(items):
        rng = np.random.default_rng(0)
        for item in items:
            moved = rng.random() < 0.3 and item.family != "language"
            first = item.options.index(min(item.options))
            yield dataclasses.replace(item, answer=first) if moved else item

    surprise = Blind(list(leaky(train_items))).surprise(list(leaky(test_items)))
    assert min(surprise.values()) > 3.5


def test_mirrored_scenes_are_as_likely():
    """The symmetry that keeps directions and places balanced."""
    many = sample_scenes(np.random.default_rng(2), 2000)
    asked = defaultdict(Counter)
    for row in range(len(many)):
        for question in questions(things(many, row)):
            asked[question.kind][question.answer] += 1
    for kind in ("where", "direction", "start", "end"):
        n = sum(asked[kind].values())
        # Two questions an object (by shape, by colour) double the variance.
        assert max(abs(c - n / 4) for c in asked[kind].values()) < 4 * math.sqrt(2 * n * 3 / 16)


# ---- words -----------------------------------------------------------------------------------------------


def test_a_users_question_is_read_as_the_vocabulary_spells_it():
    words = tokenizer()
    asked = words("What color is the Circle?  A Top-left B red, C x D blue", return_offsets_mapping=True)
    assert words.decode(asked.input_ids) == "what color is the circle ? A top-left B red , C <unk> D blue"
    assert asked.offset_mapping[4:6] == [(18, 24), (24, 25)]

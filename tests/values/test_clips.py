"""Counterfactual clips against frames changed by hand; their labels, JSON forms and refusals."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookedvid.errors import InterventionError
from hookedvid.values.clips import Black, Blurred, From, Frozen, Reversed, Shuffled, Swapped, by_clip, parted
from hookedvid.values.interventions import LV_K, EarlyExit, from_json, label, to_json
from models import LAW

FRAMES = np.random.default_rng(0).integers(0, 256, (6, 11, 14, 3), dtype=np.uint8)
FRAMES.flags.writeable = False  # what is given stays as it is
OTHER = 255 - FRAMES

boxes = st.tuples(*[st.integers(-2, 6)] * 2, *[st.integers(7, 20)] * 2).map(lambda b: tuple(map(float, b)))
some = st.none() | st.lists(st.integers(-6, 5), min_size=1, max_size=3).map(tuple)
clips = (
    st.just(Reversed())
    | st.builds(Shuffled, st.integers(0, 9), st.sampled_from(["", "clips/a.mp4"]))
    | st.builds(Frozen, st.integers(-6, 5))
    | st.builds(Swapped, st.integers(-6, 5), st.integers(-6, 5))
    | st.builds(Black, some)
    | st.builds(Blurred, some, st.none() | boxes, st.sampled_from([0.5, 1.0, 2.5]))
    | st.just(From("b.mp4"))
)


def changed(*changes, frames=FRAMES):
    for c in changes:
        frames = c.change(frames, lambda path: OTHER)
    return frames


def test_each_change_by_hand():
    f = FRAMES
    for change, shown in {
        Reversed(): [f[5], f[4], f[3], f[2], f[1], f[0]],
        Frozen(2): [f[2]] * 6,
        Frozen(-1): [f[5]] * 6,
        Swapped(1, -2): [f[0], f[4], f[2], f[3], f[1], f[5]],
        Black(): [0 * f[0]] * 6,
        Black((0, -1)): [0 * f[0], *f[1:5], 0 * f[5]],
        From("b.mp4"): list(OTHER),
    }.items():
        assert np.array_equal(changed(change), np.stack(shown)), change
    assert Black(range(2)) == Black([0, 1]) == Black((0, 1)) and Black(3) == Black((3,)) != Black()


def test_an_order_is_the_generators_permutation_and_one_a_text():
    seeds = [7, *b"clips/a.mp4"]
    assert Shuffled(7, "clips/a.mp4").order(6) == tuple(np.random.default_rng(seeds).permutation(6).tolist())
    assert Shuffled(7).order(6) == tuple(np.random.default_rng([7]).permutation(6).tolist()) != Shuffled(8).order(6)
    assert np.array_equal(changed(Shuffled(7)), FRAMES[list(Shuffled(7).order(6))])


@pytest.mark.parametrize("box", [None, (3.5, 2, 9, 40)])
def test_a_blurred_pixel_is_the_gaussian_mean_around_it(box):
    sigma, (height, width) = 1.5, FRAMES.shape[1:3]
    found = changed(Blurred((1,), box, sigma))
    x0, y0, x1, y1 = (0, 0, width, height) if box is None else (3, 2, 9, height)
    wanted = FRAMES.copy()
    reach = 6  # 4 standard deviations
    for y in range(y0, y1):
        for x in range(x0, x1):
            total, mean = 0.0, np.zeros(3)
            for dy in range(-reach, reach + 1):
                for dx in range(-reach, reach + 1):
                    weight = math.exp(-(dy**2 + dx**2) / (2 * sigma**2))
                    total += weight
                    mean += weight * FRAMES[1, min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
            wanted[1, y, x] = np.rint(mean / total)
    assert np.array_equal(found, wanted) and not np.array_equal(found, FRAMES)


def test_a_box_is_what_of_it_lies_in_the_frames():
    height, width = FRAMES.shape[1:3]
    assert np.array_equal(changed(Blurred(box=(-9, -9, 2, 3))), changed(Blurred(box=(0, 0, 2, 3))))
    for box in ((-9, -9, -4, -5), (-9, 0, -4, 3), (0, -9, 2, -5), (width, 0, width + 2, 3), (0, height, 2, height + 1)):
        with pytest.raises(InterventionError, match="the box lies outside the frames"):
            changed(Blurred(box=box))


@LAW
@given(st.lists(clips, max_size=3))
def test_changes_keep_the_form_of_clips_and_survive_json(changes):
    shown = changed(*changes)
    assert shown.shape == FRAMES.shape and shown.dtype == np.uint8
    again = from_json(json.loads(json.dumps(to_json(changes))))
    assert again == tuple(changes) and label(again) == label(changes) and hash(again) == hash(tuple(changes))
    assert np.array_equal(changed(*again), shown)
    assert np.array_equal(changed(*changes, Reversed(), Reversed()), shown)
    assert np.array_equal(changed(*changes, Swapped(1, 4), Swapped(4, 1)), shown)


def test_labels_say_what_is_shown():
    said = [
        Shuffled(3),
        Frozen(2),
        Swapped(0, 1),
        Black(),
        Black((1, 2)),
        Blurred((0,), (1, 2, 3, 4.5)),
        From("a/b.mp4"),
    ]
    assert [c.label() for c in said] == [
        "shuffled by seed 3",
        "frozen at frame 2",
        "frames 0 and 1 swapped",
        "black",
        "black frames 1,2",
        "blurred by 8 frames 0 in (1, 2, 3, 4.5)",
        "frames of b.mp4",
    ]
    assert label([Reversed(), LV_K]) == "reversed + LV-K all layers"
    assert From(Path("a") / "b.mp4") == From("a/b.mp4")


def test_conditions_are_parted_from_their_clips():
    exit = EarlyExit(1)
    assert parted([LV_K, Black(), exit, Reversed()], 4) == ((Black(), Reversed()), (LV_K, exit))
    assert by_clip([[], [LV_K], [Reversed(), LV_K], [exit], [Reversed()]], 4) == {
        (): [(0, ()), (1, (LV_K,)), (3, (exit,))],
        (Reversed(),): [(2, (LV_K,)), (4, ())],
    }


REFUSED = {
    "a frame beyond": (lambda: changed(Frozen(6)), "frozen at frame 6: no frame 6; this clip has 6 sampled frames"),
    "one of several": (lambda: changed(Black((0, -7))), "black frames 0,-7: no frame -7"),
    "no frame": (lambda: Black(()), "no frames are given"),
    "a name of frames": (lambda: Black("first"), "'first' is not a frame's number"),
    "a seed below 0": (lambda: Shuffled(-1), "give a seed from 0 up"),
    "half a seed": (lambda: Shuffled(0.5), "0.5 is not a seed"),
    "sigma 0": (lambda: Blurred(sigma=0), "sigma is 0; give a standard deviation"),
    "a box of three": (lambda: Blurred(box=(1, 2, 3)), "box is (1, 2, 3); give (x0, y0, x1, y1)"),
    "a flat box": (lambda: Blurred(box=(1, 2, 3, 2)), "is empty"),
    "a box outside": (
        lambda: changed(Blurred(box=(20, 0, 30, 5))),
        "outside the frames of 14 x 11 pixels",
    ),
    "no path": (lambda: From(""), "give the path of another video"),
    "a shorter video": (
        lambda: From("b.mp4").change(FRAMES[:5], lambda path: OTHER),
        "6 frames are sampled of it",
    ),
}


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_shown_is_refused_in_words(make, said):
    with pytest.raises(InterventionError) as e:
        make()
    assert said in str(e.value)

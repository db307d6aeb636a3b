"""The sampling rules: golden indices of the code they come from, and laws over all sizes."""

import inspect
import json
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor
from transformers.models.video_llama_3.video_processing_video_llama_3 import VideoLlama3VideoProcessor
from transformers.video_utils import VideoMetadata

from hookedvid.errors import InputError, VideoError
from hookedvid.video.samplers import SAMPLERS, check, sample_indices, told_times

# Computed with the evaluators' own code: LLaVA-OneVision's, InternVideo2.5's and VLMEvalKit's.
GOLDEN = [
    ("linspace", 9000, [0, 1285, 2571, 3856, 5142, 6427, 7713, 8999]),
    ("mid_segment", 9000, [562, 1687, 2812, 3937, 5062, 6186, 7311, 8436]),
    ("inner", 9000, [1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000]),
    ("linspace", 300, [0, 42, 85, 128, 170, 213, 256, 299]),
    ("mid_segment", 300, [18, 55, 93, 130, 168, 205, 242, 280]),
    ("inner", 300, [33, 66, 100, 133, 166, 200, 233, 266]),
    ("mid_segment", 100, [6, 18, 31, 43, 56, 68, 80, 93]),
    ("linspace", 10, [0, 1, 2, 3, 5, 6, 7, 9]),
    ("mid_segment", 10, [0, 1, 2, 3, 4, 6, 7, 8]),
    ("inner", 10, [1, 2, 3, 4, 5, 6, 7, 8]),
]

EXACT = ("linspace", "mid_segment", "inner")
samplers = st.sampled_from(sorted(SAMPLERS))
totals = st.integers(1, 20_000)
counts = st.integers(1, 128)
rates = st.floats(0.1, 240)
law = settings(deadline=None)  # a loaded machine is no failure


@pytest.mark.parametrize(("sampler", "n_total", "expected"), GOLDEN)
def test_golden_indices(sampler, n_total, expected):
    assert sample_indices(sampler, n_total, 8) == expected


def test_golden_bound():
    expected = [140, 168, 196, 224, 252, 281, 309, 337]
    assert sample_indices("mid_segment", 900, 8, fps=30, bound=(4.2, 11.7)) == expected


@law
@given(samplers, totals, counts, rates)
def test_indices_ascend_and_lie_in_the_video(sampler, n_total, n_frames, fps):
    indices = sample_indices(sampler, n_total, n_frames, fps=fps)
    assert indices == sorted(indices) and indices[0] >= 0 and indices[-1] < n_total
    assert all(type(i) is int for i in indices)
    if sampler in EXACT:
        assert len(indices) == n_frames
    else:
        assert 0 < len(indices) <= n_frames and len(set(indices)) == len(indices)


@law
@given(samplers, totals, counts, rates)
def test_a_bound_around_the_video_changes_nothing(sampler, n_total, n_frames, fps):
    bounded = sample_indices(sampler, n_total, n_frames, fps=fps, bound=(-1.0, n_total / fps + 1))
    assert bounded == sample_indices(sampler, n_total, n_frames, fps=fps)


@law
@given(samplers, st.integers(0, 500), st.integers(1, 500), counts)
def test_a_bound_samples_the_cut_video_shifted(sampler, first, n_inside, n_frames):
    # At 1 frame per second, seconds are frame numbers; both ends belong to the bound.
    n_total = first + n_inside + 100
    bounded = sample_indices(sampler, n_total, n_frames, fps=1, bound=(first, first + n_inside))
    assert bounded == [first + i for i in sample_indices(sampler, n_inside + 1, n_frames, fps=1)]


@law
@given(totals, st.integers(2, 128))
def test_linspace_is_numpys_and_takes_both_ends(n_total, n_frames):
    indices = sample_indices("linspace", n_total, n_frames)
    assert indices == np.linspace(0, n_total - 1, n_frames, dtype=int).tolist()
    assert (indices[0], indices[-1]) == (0, n_total - 1)


def test_linspace_truncates_numpys_floats_not_exact_fractions():
    # 45 * (70 / 50) is 62.99999999999999 in floats and 63 in fractions; upstream reads frame 62.
    assert sample_indices("linspace", 71, 51)[45] == 62


def test_inner_rounds_its_step_first():
    # i * (n / (N + 1)) may fall just below the whole number that (i * n) / (N + 1) is: upstream's rule.
    expected = [int(i * (120 / 44)) for i in range(1, 44)]
    assert sample_indices("inner", 120, 43) == expected != [i * 120 // 44 for i in range(1, 44)]


def test_mid_segment_rounds_half_to_even():
    # g = 2.5, so the second segment starts at round(2.5): 2 and not 3.
    assert sample_indices("mid_segment", 6, 2) == [1, 3]


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [("linspace", 0), ("one_fps", 0), ("mid_segment", 149), ("inner", 150), ("internvl_hf", 150)],
)
def test_one_frame(sampler, expected):
    assert sample_indices(sampler, 300, 1, fps=1) == [expected]


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_video_of_one_frame(sampler):
    assert set(sample_indices(sampler, 1, 8, fps=30)) == {0}


PROCESSORS = json.loads((Path(__file__).parents[1] / "golden" / "processors.json").read_text())["samples"]
OFFICIAL = dict(zip(PROCESSORS, ("qwen2_hf", "qwen3_hf", "internvl_hf", "smolvlm", "videollama3_hf"), strict=True))


@pytest.mark.parametrize(
    ("name", "n_total", "fps", "arguments", "expected"),
    [(name, *row) for name, rows in PROCESSORS.items() for row in rows],
)
def test_frames_are_those_of_the_official_processors(name, n_total, fps, arguments, expected):
    if name == "internvl":  # which has no rate of its own
        most = arguments.get("num_frames", int(n_total / fps * 1))
    else:
        most = arguments.get("num_frames", 180 if name == "videollama3" else 768)
    if name.startswith("qwen") and arguments.get("fps") == 1:
        fps *= 2  # asked for 1 a second of a video twice as fast, for the 2 that the sampler takes
    assert sample_indices(OFFICIAL[name], n_total, most, fps=fps) == expected


@law
@given(st.integers(4, 20_000), rates, st.integers(4, 800))
def test_frames_are_those_of_transformers(n_total, fps, most):
    about = VideoMetadata(total_num_frames=n_total, fps=fps, duration=n_total / fps)
    made = {name: sample_indices(name, n_total, most, fps=fps) for name in SAMPLERS}
    processor = Qwen2VLVideoProcessor(max_frames=most)
    assert made["qwen2_hf"] == inside(processor.sample_frames(about, fps=2), n_total)
    assert made["qwen3_hf"] == Qwen3VLVideoProcessor(max_frames=most).sample_frames(about).tolist()
    processor = VideoLlama3VideoProcessor(max_frames=most)
    assert made["videollama3_hf"] == inside(processor.sample_frames(about, fps=1), n_total)
    assert made["smolvlm"] == SmolVLMVideoProcessor().sample_frames(about, num_frames=most, fps=1).tolist()
    if most <= n_total:
        official = InternVLVideoProcessor().sample_frames(about, num_frames=most)
        assert made["internvl_hf"] == official.tolist()


def inside(indices, n_total):
    """The frames there are: a step too many leads past the end, where reading them fails."""
    return [i for i in indices.tolist() if i < n_total]


def test_qwen_spreads_an_even_number_with_both_ends():
    # smart_nframes of qwen-vl-utils: 10 s are 20 frames; 0.7 s are the least, 4; of 3 frames there are 2.
    assert sample_indices("qwen", 300, 768, fps=30) == torch.linspace(0, 299, 20).round().long().tolist()
    assert sample_indices("qwen", 21, 768, fps=30) == [0, 7, 13, 20]
    assert sample_indices("qwen", 3, 768, fps=30) == [0, 2]
    assert len(sample_indices("qwen", 30_000, 768, fps=30)) == 768
    assert len(sample_indices("qwen", 300, 9, fps=30)) == 8
    assert sample_indices("qwen", 300, 1, fps=30) == [0]


@pytest.mark.skipif(not hasattr(av.VideoFrame, "duration"), reason="this PyAV gives a frame no duration, nor an end")
@pytest.mark.parametrize("rate", [1, Fraction(5, 2), 3, 7, Fraction(24000, 1001), 25, Fraction(30000, 1001), 30, 60])
def test_videollama3_takes_what_ffmpegs_filter_takes(rate):
    for n_total in (10, 24, 25, 60, 61, 100, 299, 300, 301, 1800):
        taken = by_ffmpeg(n_total, rate)
        if taken:
            assert sample_indices("videollama3", n_total, 3600, fps=float(rate)) == taken
            assert told_times("videollama3", taken, n_total, float(rate)) == list(range(len(taken)))
    assert sample_indices("videollama3", 1800, 5, fps=float(rate)) == [
        taken[i] for i in np.linspace(0, len(taken) - 1, 5, dtype=int)
    ]


def by_ffmpeg(n_total: int, rate) -> list[int]:
    """Numbers of the frames that the filter `fps=1:round=down` hands on."""
    graph, base = av.filter.Graph(), 1 / Fraction(rate)
    source = graph.add_buffer(width=2, height=2, format="gray16le", time_base=base)
    graph.link_nodes(source, graph.add("fps", "fps=1:round=down"), sink := graph.add("buffersink")).configure()
    taken = []
    for i in range(n_total + 1):
        frame = None
        if i < n_total:
            frame = av.VideoFrame.from_ndarray(np.full((2, 2), i, np.uint16), format="gray16le")
            frame.pts, frame.time_base, frame.duration = i, base, 1
        source.push(frame)
        with suppress(av.error.BlockingIOError, av.error.EOFError):
            while True:
                taken.append(int(sink.pull().to_ndarray()[0, 0]))
    return taken


def test_videollama3_tells_the_beginnings_of_seconds():
    """Of a part from where it begins; of less than a second, and of what another sampler took, frames' own times."""
    assert sample_indices("videollama3", 100, 180, fps=10, bound=(2.4, 5.6)) == [33, 43, 53]
    assert told_times("videollama3", [33, 43, 53], 100, 10, (2.4, 5.6)) == pytest.approx([2.4, 3.4, 4.4])
    assert sample_indices("videollama3", 10, 180, fps=24) == sample_indices("videollama3_ids", 10, 180, fps=24) == [5]
    assert told_times("videollama3", [5], 10, 20) == [0.25]
    assert told_times("videollama3", [9, 20], 100, 10) == [0.9, 2.0]
    assert sample_indices("videollama3", 4, 180, fps=0.5) == [0, 1, 2, 3]
    assert told_times("videollama3", [0, 1, 2, 3], 4, 0.5) == [0, 2, 4, 6]


def test_videollama3_takes_the_middle_of_every_second_of_folders():
    assert sample_indices("videollama3_ids", 100, 180, fps=29.97) == [14, 43, 72]
    assert sample_indices("videollama3_ids", 10, 180, fps=24) == [5]
    assert sample_indices("videollama3_ids", 5400, 180, fps=30) == np.linspace(0, 5399, 180, dtype=int).tolist()
    assert sample_indices("videollama3_ids", 100, 180, fps=0.5) == list(range(100))


def test_short_videos_repeat_frames_as_linspace_does_upstream():
    assert sample_indices("linspace", 3, 8) == [0, 0, 0, 0, 1, 1, 1, 2]


def test_one_fps_steps_by_the_rounded_rate():
    assert sample_indices("one_fps", 100, 32, fps=29.97) == [0, 30, 60, 90]
    assert sample_indices("one_fps", 10, 32, fps=2.5) == [0, 2, 4, 6, 8]


def test_one_fps_takes_every_frame_of_slower_videos():
    assert sample_indices("one_fps", 5, 32, fps=0.3) == [0, 1, 2, 3, 4]


def test_one_fps_becomes_linspace_once_it_has_too_many():
    assert len(sample_indices("one_fps", 240, 8, fps=30)) == 8
    assert sample_indices("one_fps", 240, 8, fps=30) == list(range(0, 240, 30))
    assert sample_indices("one_fps", 241, 8, fps=30) == sample_indices("linspace", 241, 8)


@pytest.mark.parametrize(
    ("error", "text", "arguments"),
    [
        (InputError, "no sampler 'linespace'; nearest: 'linspace'", dict(sampler="linespace")),
        (InputError, "n_frames is 0; ask for at least one", dict(n_frames=0)),
        (VideoError, "cannot sample 8 frames of a video that has 0; check", dict(n_total=0)),
        (VideoError, "sampler 'one_fps' needs the frame rate, but fps is None", dict(sampler="one_fps")),
        (VideoError, "sampler 'one_fps' needs the frame rate, but fps is 0", dict(sampler="one_fps", fps=0)),
        (VideoError, "bound (1, 2) needs the frame rate, but fps is None; give", dict(bound=(1, 2))),
        (VideoError, "bound (2, 1) is not a time span; give (start, end)", dict(bound=(2, 1), fps=30)),
        (VideoError, "bound (0, nan) is not a time span", dict(bound=(0, float("nan")), fps=30)),
        (VideoError, "bound (0, inf) is not a time span", dict(bound=(0, float("inf")), fps=30)),
        (
            VideoError,
            "holds no frame: the video has 300 frames at 30 fps, 10 s",
            dict(bound=(20, 30), fps=30),
        ),
        (VideoError, "bound (-9, -3) s holds no frame", dict(bound=(-9, -3), fps=30)),
    ],
)
def test_what_cannot_be_sampled(error, text, arguments):
    with pytest.raises(error) as caught:
        sample_indices(**{"sampler": "linspace", "n_total": 300, "n_frames": 8, **arguments})
    assert text in str(caught.value)


def test_more_frames_than_anybody_reads_are_refused_before_they_are_counted_out():
    for sampler in SAMPLERS:
        with pytest.raises(InputError, match=r"n_frames is 1,000,000,000; at most 100,000 at once"):
            sample_indices(sampler, 10, 10**9, fps=1)


@pytest.mark.parametrize("n", [2.0, "3", True, None])
def test_frames_are_counted_in_whole_numbers(n):
    with pytest.raises(InputError, match=f"n_frames is {n!r}; ask for at least one, by a whole number"):
        inspect.unwrap(check)("linspace", n)
    assert sample_indices("linspace", 4, inspect.unwrap(check)("linspace", np.int64(4))) == [0, 1, 2, 3]


@pytest.mark.parametrize("bound", [[0.5, "1"], ("0", "1"), (0, 1, 2), 3, (False, True)])
def test_a_bound_is_two_numbers(bound):
    with pytest.raises(InputError, match=r"bound is .*; give \(start, end\), two numbers of seconds"):
        inspect.unwrap(sample_indices)("linspace", 300, 8, fps=30, bound=bound)

"""Which frames of a video a model sees: pure rules on frame numbers, no pictures.

All frame numbers are 0-based positions in the file, in display order. A rule works on the inclusive range
[first, last] that `bound` leaves; without a bound this is [0, n_total - 1].

- `linspace`: first + i (last - first) / (N - 1), truncated; both ends included, N = 1 gives `first`. The
  LLaVA family (LLaVA-OneVision, LongVA, LLaVA-NeXT-Video) and LLaVA-Video when capped.
- `one_fps`: every round(fps)-th frame from `first`, so fewer than N for a short video; `linspace` once they
  would be more than N. LLaVA-Video.
- `mid_segment`: int(first + g / 2 + round(g i)) with g = (last - first) / N: the middle of N equal segments.
  InternVL, InternVideo2.5, MVBench.
- `inner`: first + int(i n / (N + 1)), i = 1 .. N, where n counts the frames of the range: neither end.
  VLMEvalKit.
- `qwen`: 2 frames a second, at least 4 and an even number, spread over the range with both ends, rounded.
  qwen-vl-utils, by which Qwen's authors evaluate.
- `qwen2_hf`: as many, from `first` in equal steps, truncated. Transformers' processor of Qwen2-VL and Qwen2.5-VL.
- `qwen3_hf`: 2 a second, at least 4, odd numbers too, spread as `qwen` does. Transformers' processor of Qwen3-VL.
- `videollama3`: the last frame of each whole second, as ffmpeg's `fps=1:round=down` takes it, spread over all once they
  are more than N; a prompt tells the seconds' beginnings. `videollama3_ids` of less than a second. VideoLLaMA3.
- `videollama3_ids`: every floor(fps)-th frame from the middle of the first second; `linspace` once N seconds are
  reached, or it would be more than N. VideoLLaMA3, of folders and GIFs.
- `videollama3_hf`: 1 a second, at least 4, as `qwen2_hf` does. Transformers' processor, whose times are float32.
- `smolvlm`: 1 a second, at least one, spread with both ends, truncated, each frame once; a second at both ends is left
  out of videos that are more than 2 seconds longer than N. SmolVLM2.
- `internvl_hf`: (i + 1/2) n / N, truncated. Transformers' processor of InternVL.

N, `n_frames`, is how many frames `linspace`, `mid_segment` and `inner` take, repeating some of a video that has fewer,
as upstream does. Of the others it is the most, and shorter videos give fewer: each frame once. Frames in pairs (`qwen`,
`qwen2_hf`) are an even number, but for a single one, which upstream refuses.
Rounding is half to even everywhere (NumPy's and Python's `round`), again as upstream.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial

import numpy as np

from hookedvid.errors import InputError, VideoError, nearest
from hookedvid.values.serial import counted, is_number

# Frames of one sample, an hour's at 27 a second: more than any model reads, and 15 GB at 224 x 224.
MOST = 100_000


def sample_indices(
    sampler: str,
    n_total: int,
    n_frames: int,
    *,
    fps: float | int | None = None,
    bound: tuple[float | int, float | int] | None = None,
) -> list[int]:
    """Frame numbers to read, 0-based and never decreasing: `n_frames` of them, or fewer where that is the most.

    `fps` is the average frame rate; `bound` needs it, and the samplers that take so many frames a second (`RATED`).
    `bound` is (start, end) in seconds and keeps frames max(0, round(start * fps)) to min(round(end * fps),
    n_total - 1), both included: the rule of MVBench for `mid_segment`, applied alike to the other samplers. It counts
    frames at the average rate, so with a variable frame rate it is not a cut by time.

    Raises:
        InputError: As `check` does, and for a bound that is no two numbers; VideoError where this video cannot serve:
            no frames, no frame rate where one is needed, or a bound that holds no frame.
    """
    n_frames = check(sampler, n_frames)
    if bound is not None:
        _check_bound(bound)
    if n_total < 1:
        raise VideoError(f"cannot sample {n_frames} frames of a video that has {n_total}; check the video")
    if (sampler in RATED or bound is not None) and not (fps and 0 < fps < math.inf):
        asked = f"bound {bound}" if bound is not None else f"sampler {sampler!r}"
        todo = "give the rate, or take another sampler and no bound"
        raise VideoError(f"{asked} needs the frame rate, but fps is {fps}; {todo}")
    first, last = (0, n_total - 1) if bound is None else within(bound, n_total, float(fps or 0))
    return SAMPLERS[sampler](first, last, n_frames, float(fps or 0))


def told_times(
    sampler: str,
    indices: Sequence[int],
    n_total: int,
    fps: float,
    bound: tuple[float | int, float | int] | None = None,
) -> list[float]:
    """Seconds that a prompt tells of sampled frames: of most samplers frame numbers over the average rate.

    Args:
        sampler: By whose code they are told; frames that it would not have taken have their own times.
        indices: Of frames, 0-based in the file.
        n_total: Of the file's frames.
        fps: The file's average rate.
        bound: Of the part that was sampled, in seconds.
    """
    if sampler == "videollama3_hf":  # whose frame numbers are a tensor upstream, so that 0.85 is 0.9 and not 0.8
        return [float(x) for x in np.array(indices, np.float32) / np.float32(fps)]
    if sampler == "videollama3":
        first, rate = 0 if bound is None else within(bound, n_total, fps)[0], _exact(fps)
        ends = [int((i - first + 1) / rate) for i in indices]
        if rate >= 1 and all(n and i == _end(first, n, rate) for i, n in zip(indices, ends, strict=True)):
            start = 0 if bound is None else max(0, bound[0])
            return [start + n - 1 for n in ends]
    return [i / fps for i in indices]


def check(sampler: str, n_frames: int) -> int:
    """`n_frames` as an int.

    It needs no video.

    Raises:
        InputError: For an unknown sampler, or for no whole number from 1 to MOST.
    """
    if sampler not in SAMPLERS:
        raise InputError(f"no sampler {sampler!r}; {nearest(sampler, SAMPLERS)}")
    n_frames = counted("n_frames", n_frames)
    if n_frames > MOST:
        raise InputError(f"n_frames is {n_frames:,}; at most {MOST:,} at once: sample parts of the video, with `bound`")
    return n_frames


def _check_bound(bound: object) -> None:
    if not (isinstance(bound, tuple | list) and len(bound) == 2 and all(map(is_number, bound))):
        raise InputError(f"bound is {bound!r}; give (start, end), two numbers of seconds")


def within(bound: tuple[float | int, float | int], n_total: int, fps: float) -> tuple[int, int]:
    """First and last frame inside a bound. Raises VideoError where it holds none."""
    start, end = bound
    if not -math.inf < start < end < math.inf:
        raise VideoError(f"bound ({start}, {end}) is not a time span; give (start, end) in seconds, start < end")
    first, last = max(0, round(start * fps)), min(round(end * fps), n_total - 1)
    if first > last:
        raise VideoError(
            f"bound ({start}, {end}) s holds no frame: the video has {n_total} frames at {fps:g} fps, "
            f"{n_total / fps:g} s; check the bound, or whether the clip is already cut to it"
        )
    return first, last


def _linspace(first: int, last: int, n_frames: int, fps: float) -> list[int]:
    # NumPy's own float steps, not exact integers: upstream truncates these, and the two differ where
    # i * step falls just below a whole number. From 0, so that a bound samples as a cut video would.
    return [first + i for i in np.linspace(0, last - first, n_frames, dtype=int).tolist()]


def _one_fps(first: int, last: int, n_frames: int, fps: float) -> list[int]:
    # Below 0.5 fps upstream's step is 0, which `range` refuses; every frame is then the nearest meaning.
    indices = list(range(first, last + 1, max(1, round(fps))))
    return indices if len(indices) <= n_frames else _linspace(first, last, n_frames, fps)


def _mid_segment(first: int, last: int, n_frames: int, fps: float) -> list[int]:
    segment = (last - first) / n_frames
    return [int(first + segment / 2 + np.round(segment * i)) for i in range(n_frames)]


def _inner(first: int, last: int, n_frames: int, fps: float) -> list[int]:
    # i * (n / (N + 1)) and not (i * n) / (N + 1): upstream rounds the step first.
    step = (last - first + 1) / (n_frames + 1)
    return [first + int(i * step) for i in range(1, n_frames + 1)]


def _count(n_total: int, n_frames: int, fps: float, per_second: int, group: int) -> int:
    """Frames at `per_second`, at least 4 and whole groups, of a video of as many; at least one."""
    most = n_frames // group * group
    wanted = min(max(n_total / fps * per_second, 4), most, n_total)
    return max(1, math.floor(wanted / group) * group)


def _qwen(first: int, last: int, n_frames: int, fps: float) -> list[int]:
    import torch

    n = _count(last - first + 1, n_frames, fps, 2, 2)
    # torch's float32 steps, which upstream rounds: NumPy's would give other frames of long videos.
    return [first + int(i) for i in torch.linspace(0, last - first, n).round()]


def _qwen3_hf(first: int, last: int, n_frames: int, fps: float) -> list[int]:
    n = _count(last - first + 1, n_frames, fps, 2, 1)
    return [first + i for i in np.linspace(0, last - first, n).round().astype(int).tolist()]


def _by_rate_hf(first: int, last: int, n_frames: int, fps: float, per_second: int, group: int) -> list[int]:
    n_total = last - first + 1
    return _steps(first, n_total, _count(n_total, n_frames, fps, per_second, group), 0.0)


def _internvl_hf(first: int, last: int, n_frames: int, fps: float) -> list[int]:
    n_total = last - first + 1
    n = min(n_frames, n_total)
    return _steps(first, n_total, n, n_total / n / 2)


def _steps(first: int, n_total: int, n: int, start: float) -> list[int]:
    import torch

    # Rounding may add a step, to the frame after the last one: there upstream ends with an error.
    return [first + int(i) for i in torch.arange(start, n_total, n_total / n)[:n]]


def _videollama3(first: int, last: int, n_frames: int, fps: float) -> list[int]:
    rate = _exact(fps)
    n = int((last - first + 1) / rate)
    if n == 0:  # upstream has this for parts, and of a file no frame at all
        return _videollama3_ids(first, last, n_frames, fps)
    seconds = range(n) if n <= n_frames else np.linspace(0, n - 1, n_frames, dtype=int).tolist()
    return list(dict.fromkeys(_end(first, k + 1, rate) for k in seconds))


def _end(first: int, n: int, rate: Fraction) -> int:
    """The last frame of the n-th second."""
    return first + math.ceil(n * rate) - 1


def _exact(fps: float) -> Fraction:
    """A rate as a file has it, 30000/1001, so that a second's last frame is not the next one's first."""
    return Fraction(fps).limit_denominator(100_000)


def _videollama3_ids(first: int, last: int, n_frames: int, fps: float) -> list[int]:
    n_total = last - first + 1
    if n_total / fps < n_frames:
        step = max(1, min(int(fps), n_total))  # below 1 fps upstream's is 0
        indices = list(range(first + step // 2, last + 1, step))
        if len(indices) <= n_frames:  # upstream gives a few more, as its step is less than a second
            return indices
    return _linspace(first, last, min(n_frames, n_total), fps)


def _smolvlm(first: int, last: int, n_frames: int, fps: float) -> list[int]:
    n_total = last - first + 1
    start, end = 0, n_total - 1
    if n_total / fps - 2 > n_frames:
        start, end = int(fps), min(int(n_total - fps), end)
    if start >= end:
        start, end = 0, n_total - 1
    n = max(1, min(round(n_total / fps), n_frames))
    return [first + i for i in np.unique(np.linspace(start, end, n, dtype=int)).tolist()]


SAMPLERS: dict[str, Callable[[int, int, int, float], list[int]]] = {
    "linspace": _linspace,
    "one_fps": _one_fps,
    "mid_segment": _mid_segment,
    "inner": _inner,
    "qwen": _qwen,
    "qwen2_hf": partial(_by_rate_hf, per_second=2, group=2),
    "qwen3_hf": _qwen3_hf,
    "videollama3": _videollama3,
    "videollama3_ids": _videollama3_ids,
    "videollama3_hf": partial(_by_rate_hf, per_second=1, group=1),
    "smolvlm": _smolvlm,
    "internvl_hf": _internvl_hf,
}
# Those that take so many frames a second.
RATED = {
    "one_fps": 1, "qwen": 2, "qwen2_hf": 2, "qwen3_hf": 2, "videollama3": 1, "videollama3_ids": 1, "videollama3_hf": 1,
    "smolvlm": 1,
}  # fmt: skip
# Those of them that take at least so many.
LEAST: dict[str, int] = dict.fromkeys(("qwen", "qwen2_hf", "qwen3_hf", "videollama3_hf"), 4)

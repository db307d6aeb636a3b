"""The video track of a file as its packets tell it: how many frames, their times, their rate."""

import bisect
from fractions import Fraction
from typing import Any, NamedTuple


class Track(NamedTuple):
    """The video track of a file as its packets tell it.

    `pts` holds the presentation times of the displayed frames, sorted, in units of `time_base` seconds; it is
    empty where some are missing or equal. `fps` is the average rate that the container states, or else frames per
    second of the times there are; None where there is neither. `keys` are the random access points, sorted: (number
    of the first frame at or after it, pts). `ordered` says whether pts give the display order; where they do not,
    frames are counted as they come out.
    """

    n_total: int
    pts: list[int]
    keys: list[tuple[int, int]]
    ordered: bool
    time_base: Fraction
    last_duration: int
    fps: float | None

    def seconds(self, index: int) -> float:
        """When frame `index` (0-based) is shown, in seconds after the first."""
        return float((self.pts[index] - self.pts[0]) * self.time_base)

    @property
    def duration(self) -> float | None:
        """Seconds from the first frame to the end of the last; None without times."""
        return self.seconds(-1) + float(self.last_duration * self.time_base) if self.pts else None


# Bare streams have no times; what FFmpeg gives are counted at 25 per second, but for these, whose codecs have a clock.
CLOCKED = ("mpegvideo", "m4v")


def track_of(container: Any, stream: Any, shown: list[tuple[int | None, int]], keys: list[int]) -> Track:
    """The track of a container's video stream.

    Args:
        shown: (pts, duration) of the packets whose frames are displayed, in the file's order.
        keys: Pts of random access points.
    """
    from av.format import Flags

    bare = bool(container.format.flags & Flags.no_timestamps.value)
    stamps = [] if bare and container.format.name not in CLOCKED else [pts for pts, _ in shown if pts is not None]
    timed = len(set(stamps)) == len(shown)
    last_duration = max(shown)[1] if timed else shown[-1][1]
    base = Fraction(stream.time_base.numerator, stream.time_base.denominator)
    rate = (None if bare else stream.average_rate) or _mean_rate(stamps, len(shown), last_duration * base, base)
    pts = sorted(stamps) if timed else []
    return Track(
        n_total=len(shown),
        pts=pts,
        keys=sorted((bisect.bisect_left(pts, key), key) for key in keys),
        # AVI stores decoding times only, and what FFmpeg makes of them is wrong for H.264 and Xvid B-frames.
        ordered=timed and container.format.name != "avi",
        time_base=base,
        last_duration=last_duration or (round(1 / (rate * base)) if rate else 0),
        fps=float(rate) if rate else None,
    )


def _mean_rate(stamps: list[int], n_frames: int, last: Fraction, base: Fraction) -> Fraction | None:
    """Frames per second from the first time to the last, or to the last's end where its duration is known."""
    if not stamps:
        return None
    span = (max(stamps) - min(stamps)) * base + last
    return (n_frames if last else n_frames - 1) / span if span else None

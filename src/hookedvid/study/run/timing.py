"""Where a run's seconds went."""

from dataclasses import dataclass, field


@dataclass
class Timing:
    """Seconds of a run: decoding (in the processes), the model, and waiting for frames; by video, too.

    Attributes:
        n_actors: The most that were at work at once on a cluster, whose seconds are summed; 0 without one.
    """

    decoding: float = 0.0
    model: float = 0.0
    waited: float = 0.0
    n_processes: int = 0
    n_clips: int = 0
    n_cached: int = 0
    n_lost: int = 0
    n_actors: int = 0
    n_actors_lost: int = 0
    videos: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])

    def add(self, other: "Timing") -> None:
        """Count what other videos took, of another process or the same; its processes are not counted again."""
        for name in ("decoding", "model", "waited", "n_clips", "n_cached", "n_lost"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.videos |= other.videos

    def __str__(self) -> str:
        line = (
            f"decoding {self.decoding:.1f} s in {self.n_processes} workers, model {self.model:.1f} s, "
            f"waited for frames {self.waited:.1f} s"
        )
        line += f"; {self.n_cached} of {self.n_clips} clips were kept from before" if self.n_cached else ""
        line += f"; {self.n_lost} workers hung or died" if self.n_lost else ""
        line += f"; all seconds summed over {self.n_actors} actors" if self.n_actors else ""
        return line + (f", {self.n_actors_lost} more were lost" if self.n_actors_lost else "")

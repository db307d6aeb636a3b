"""How a study is carried out."""

from dataclasses import dataclass, field

from hookedvid.errors import ConfigError
from hookedvid.study.records import Shard
from hookedvid.video.clip_files import FrameCache
from hookedvid.video.decoders import WORKER, Decoders, Limits


@dataclass(frozen=True)
class Execution:
    """Who runs what, and in what bounds; nothing here changes a number.

    Attributes:
        shard: The part of the videos that is run.
        retry_failed: All failed rows once more, not only those whose cause may pass.
        n_decoders, limits, cache, worker: As `Decoders` takes them, of every process that holds the model.
        ray: The address of a Ray cluster, `local` for one on this machine alone, empty for none.
        actors: At most so many there; as many as there is room for, unless given.
    """

    shard: Shard = field(default_factory=Shard)
    retry_failed: bool = False
    n_decoders: int | None = None
    limits: Limits = field(default_factory=Limits)
    cache: FrameCache | None = None
    worker: str = WORKER
    ray: str = ""
    actors: int | None = None

    def __post_init__(self):
        if self.actors is not None and self.actors < 1:
            raise ConfigError(f"cannot run on {self.actors} actors; give 1 or more")
        if self.actors is not None and not self.ray:
            raise ConfigError("actors are Ray's: add --ray local, or the address of a cluster")

    def decoders(self) -> Decoders:
        """Decoding processes for one holder of the model."""
        return Decoders(self.n_decoders, self.limits, self.cache, self.worker)

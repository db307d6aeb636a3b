"""Which video an actor of a cluster is given next, and what becomes of those on actors that are lost."""

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Hashable, Iterable, Iterator
from typing import TypeVar

AHEAD = 2  # videos an actor has: the one it runs, and one whose frames are decoded meanwhile
TRIES = 3  # actors that a video may lose


Actor = TypeVar("Actor", bound=Hashable)


class Schedule:
    """Videos given out, at most `ahead` to an actor at a time; no clock and no process, what happens is told to it.

    What a lost actor had is given out again after all that is new and with nothing beside it, so that a video which
    kills its actor takes no other along; one that was lost `tries` times is given up.
    """

    def __init__(self, videos: Iterable[str], ahead: int = AHEAD, tries: int = TRIES):
        self._new, self._again = deque(videos), deque[str]()
        self._videos_of: defaultdict[Hashable, list[str]] = defaultdict(list)
        self._losses: Counter[str] = Counter()
        self._ahead, self._tries = ahead, tries

    @property
    def n_left(self) -> int:
        """Videos neither done nor given up."""
        return len(self._new) + len(self._again) + sum(map(len, self._videos_of.values()))

    def deal(self, actors: Collection[Actor]) -> Iterator[tuple[Actor, str]]:
        """Videos for actors that may take more, first for those that have least; each is theirs from now on."""
        for _ in range(self._ahead):
            for actor in sorted(actors, key=lambda a: len(self._videos_of[a])):
                videos = self._videos_of[actor]
                if len(videos) >= self._ahead or any(self._losses[video] for video in videos):
                    continue
                if self._new or (self._again and not videos):
                    videos.append(self._new.popleft() if self._new else self._again.popleft())
                    yield actor, videos[-1]

    def done(self, actor: Hashable, video: str) -> None:
        """An actor has answered."""
        self._videos_of[actor].remove(video)

    def lost(self, actor: Hashable) -> list[str]:
        """An actor is gone; what is given up with it."""
        videos = self._videos_of.pop(actor, [])
        self._losses.update(videos)
        self._again += [video for video in videos if self._losses[video] < self._tries]
        return [video for video in videos if self._losses[video] >= self._tries]

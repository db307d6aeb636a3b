"""Where the activations that a study's interventions take come from: another item's run, or a reference set.

A study file names sources in a table, and interventions take them by name: `patch resid_post @ 4 at video from foil`
with `[sources.foil] paired = "video"`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from hookedvid.data.item import Item
from hookedvid.errors import ConfigError, nearest
from hookedvid.values.interventions import Intervention
from hookedvid.values.serial import as_whole

FORMS = ('item = "ID"', 'paired = "video"', 'paired = "itself"', 'reference = "all"', 'reference = ["ID", …]')


@dataclass(frozen=True)
class Source:
    """A source of a study.

    Attributes:
        item: The id of the item whose intact run it is; empty for another.
        paired: `video`: the item's own question on the video of another item, drawn with `seed` among those of other
            videos. `itself`: the item's own intact run, to restore a corrupted one from. Empty for another form.
        seed: Of the pairing.
        reference: Ids of the items over whose positions mean and standard deviation are taken; empty for none, ("*",)
            for all of the study's.
    """

    name: str
    item: str = ""
    paired: str = ""
    seed: int = 0
    reference: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, how: object) -> "Source":
        """A source as a study file defines it.

        Raises:
            ConfigError: For anything that is none of the forms.
        """
        given = dict(cast(Mapping[str, Any], how)) if isinstance(how, Mapping) else {}
        seed = as_whole(given.pop("seed", 0))
        (kind, value), *more = [*given.items()] or [("", None)]
        ids = [value] if isinstance(value, str) else value
        words = isinstance(ids, list | tuple) and all(isinstance(i, str) and i for i in cast(Sequence[Any], ids))
        known = kind in ("item", "paired", "reference") and words and (kind != "paired" or value in ("video", "itself"))
        if more or not known or not ids or seed is None or not 0 <= seed < 2**63 or (seed and kind != "paired"):
            raise ConfigError(
                f"sources.{name} is {how!r}; it can be one of {', '.join(FORMS)}, with paired also a seed from 0 up"
            )
        if kind == "reference":
            return cls(name, reference=("*",) if value == "all" else tuple(cast(Sequence[str], ids)))
        return cls(name, paired=str(value), seed=seed) if kind == "paired" else cls(name, item=str(value))

    def items(self, item: Item, among: Sequence[Item]) -> tuple[Item, ...]:
        """The items that it is taken of, for one item of the study.

        Raises:
            ConfigError: Where there are none.
        """
        if self.paired == "itself":
            return (item,)
        if self.paired:
            others = [other for other in among if other.video != item.video]
            if not others:
                raise ConfigError(
                    f"sources.{self.name}: there is no other video to pair {item.id!r} with; ask about two or more"
                )
            rng = np.random.default_rng([self.seed, *item.id.encode(errors="surrogatepass")])
            other = others[int(rng.integers(len(others)))]
            seen = {n: getattr(other, n) for n in ("video", "bound", "folder_fps", "subtitles", "groups")}
            return (replace(item, **seen),)
        known = {one.id: one for one in among}
        ids = tuple(known) if self.reference == ("*",) else self.reference or (self.item,)
        for one in ids:
            if one not in known:
                raise ConfigError(f"sources.{self.name}: no item {one!r} in this study ({nearest(one, known)})")
        return tuple(known[one] for one in ids)


def named(own: Mapping[str, Any], of_protocols: Mapping[str, Mapping[str, Any]]) -> dict[str, Source]:
    """A study's own sources with those of its protocols, by name.

    Raises:
        ConfigError: For what is none, and for one that goes by the name of a protocol's.
    """
    given = dict(own)
    for protocol, sources in of_protocols.items():
        for name, how in sources.items():
            if given.setdefault(name, how) != how:
                raise ConfigError(f"sources.{name}: protocol {protocol!r} takes {how} by that name; give yours another")
    return {name: Source.of(name, how) for name, how in given.items()}


def check_named(interventions: Sequence[Intervention], sources: Mapping[str, Source]) -> None:
    """Raise ConfigError for interventions that take from what no source is called."""
    for one in interventions:
        for name in one.sources:
            if name not in sources:
                raise ConfigError(
                    f"{one.label()}: no source {name!r} ({nearest(name, sources)}); name it in the study's sources, as "
                    f"one of {', '.join(FORMS)}"
                )


def names(interventions: Sequence[Intervention]) -> tuple[str, ...]:
    """The sources that interventions take from."""
    return tuple(dict.fromkeys(name for one in interventions for name in one.sources))

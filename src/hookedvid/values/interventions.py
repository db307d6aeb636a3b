"""What is done to a run, as frozen values: knockouts, patches, edits and early exit, on a range of layers.

A value says what it does (`effect`), what it is called and what a file holds of it; callbacks are the escape
hatch (`Edit`, and `run_with_hooks` for whole activations), never the carrier of a study.
"""

# What users give is looked at, whatever its type says.
# pyright: reportUnnecessaryIsInstance=false
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import partial
from typing import Any, cast

from hookedvid.errors import HookedVidError, InterventionError, nearest
from hookedvid.values.clips import Black as Black
from hookedvid.values.clips import Blurred as Blurred
from hookedvid.values.clips import From as From
from hookedvid.values.clips import Frozen as Frozen
from hookedvid.values.clips import Reversed as Reversed
from hookedvid.values.clips import Shuffled as Shuffled
from hookedvid.values.clips import Swapped as Swapped
from hookedvid.values.edges import LV_K as LV_K
from hookedvid.values.edges import NAMED as NAMED
from hookedvid.values.edges import PATHWAYS as PATHWAYS
from hookedvid.values.edges import VS_K as VS_K
from hookedvid.values.edges import VT_K as VT_K
from hookedvid.values.edges import Knockout as Knockout
from hookedvid.values.edges import RandomEdges as RandomEdges
from hookedvid.values.edges import Replace as Replace
from hookedvid.values.effects import Intervention
from hookedvid.values.exits import AdaptiveExit as AdaptiveExit
from hookedvid.values.exits import Drop as Drop
from hookedvid.values.exits import EarlyExit as EarlyExit
from hookedvid.values.layer_range import LayerRange as LayerRange
from hookedvid.values.layer_range import as_number as as_number
from hookedvid.values.layer_range import as_range as as_range
from hookedvid.values.same_time import SameTime as SameTime
from hookedvid.values.serial import from_dict
from hookedvid.values.spelling import Spelling, how, said_fields
from hookedvid.values.writes import Ablate as Ablate
from hookedvid.values.writes import Edit as Edit
from hookedvid.values.writes import Patch as Patch
from hookedvid.values.writes import Steer as Steer
from hookedvid.values.writes import as_source as as_source

# What a verb takes: values or their lines of text.
Asked = Intervention | str | Iterable[Intervention | str] | None


def as_interventions(interventions: Asked) -> tuple[Intervention, ...]:
    """One intervention, several or none as a tuple; each a value or its line of text (`parse`).

    Raises:
        InterventionError: On anything else.
    """
    if interventions is None:
        return ()
    alone = isinstance(interventions, str) or not isinstance(interventions, Iterable)
    found: list[Intervention] = []
    for g in cast("Iterable[object]", [interventions] if alone else interventions):
        if isinstance(g, str):
            found += parse(g)
        elif isinstance(g, Intervention):
            found.append(g)
        else:
            raise InterventionError(
                f"{g!r} is no intervention; give Knockout, RandomEdges, Patch, Edit, Ablate, Steer, EarlyExit, Drop or "
                "other values, or a line such as 'LV-K @ 4:8'"
            )
    return tuple(found)


def parse(text: str) -> tuple[Intervention, ...]:
    """The interventions of a line of text, separated by `;`.

    `LV-K @ 4:8 heads 0,3 weight 0.5`, `video[3]->last`, `random like VT-K`, `exit @ 18`, `drop @ 2 keep 0.5 by
    attention`, …: layers 0-based and half-open as in Python. `+` could not separate them: it joins selectors.

    Raises:
        InterventionError: For what cannot be read, with what could be meant.
    """
    return tuple(_parsed(part.strip()) for part in text.split(";"))


def _parsed(text: str) -> Intervention:
    kinds = {cls.spelling.begins: (cls, cls.spelling) for cls in _below(Intervention) if cls.spelling}
    begins = [b for b in kinds if b and re.match(rf"{b}(\s|@|$)", text)]
    if begins:
        first = max(begins, key=len)
        cls, spelling = kinds[first]
        given = said_fields(spelling, text[len(first) :])
        if "like" in given:  # what stands there is a knockout's own line
            given["like"] = _parsed(given["like"])
        if "edges" in given:
            given = _edges(given.pop("edges")) | given
        return _made(cls, spelling, given, text)
    body = re.split(r"\s+(?=@|heads\s|weight\s|relation\s)|\s*(?=@)", text, maxsplit=1)[0].strip()
    edges = kinds[""][1]
    given = said_fields(edges, text[len(body) :])
    if body in NAMED:
        return _built(partial(replace, NAMED[body]), edges, given, text)
    if "->" in body or "→" in body:
        src, dst = re.split("->|→", body.replace(" ", ""), maxsplit=1)
        return _built(partial(Knockout, src, dst), edges, given, text)
    name, _, rest = body.partition(" ")
    if name in NAMED:
        raise InterventionError(f"cannot read {rest!r} behind {name!r}; {how(edges)}")
    examples = [spelling.example for _, spelling in kinds.values()]
    raise InterventionError(
        f"no knockout {body!r} ({nearest(body, [*NAMED, *filter(None, kinds)])}); or write source->destination; lines "
        f"that can be read: {'; '.join(examples)}"
    )


def _edges(text: str) -> dict[str, Any]:
    """What a knockout's line says of edges, which is all that it may say."""
    cut = _parsed(text)
    told: dict[str, Any] = {f: getattr(cut, f, "") for f in ("src", "dst", "relation", "keep_self", "name")}
    if cut.kind != Knockout.kind or cut != Knockout(**told):
        raise InterventionError(
            f"cannot read {text!r} as edges alone; write source->destination or a knockout's name, without a weight"
        )
    return told


def _made(cls: type[Intervention], spelling: Spelling, given: Mapping[str, Any], text: str) -> Intervention:
    assert is_dataclass(cls)
    words = {name: word for word, (name, _) in spelling.words.items()}
    lacks = [words.get(f.name, f.name) for f in fields(cls) if f.default is MISSING and f.name not in given]
    if lacks:
        raise InterventionError(f"{text!r} lacks {', '.join(map(repr, lacks))}; write {spelling.example!r}")
    return _built(cls, spelling, given, text)


def _built(make: Callable[..., Intervention], spelling: Spelling, given: Mapping[str, Any], text: str) -> Intervention:
    """The value; of a field that took in more words than one, which may be no words of its kind, errors say so."""
    try:
        return make(**given)
    except HookedVidError as e:
        if any(isinstance(said, str) and " " in said for said in given.values()):
            raise InterventionError(f"cannot read {text!r}: {e}; {how(spelling)}") from e
        raise


def label(interventions: Sequence[Intervention]) -> str:
    """A row's name in tables: the interventions' labels, or `baseline`."""
    return " + ".join(i.label() for i in interventions) or "baseline"


def to_json(interventions: Sequence[Intervention]) -> list[dict[str, Any]]:
    """JSON objects, `kind` first. Raises on an Edit, and on a Patch whose source is a cache in memory."""
    return [i.to_json() for i in interventions]


def _below(cls: type[Intervention]) -> Iterator[type[Intervention]]:
    for kind in cls.__subclasses__():
        yield kind
        yield from _below(kind)


def from_json(data: Sequence[Mapping[str, Any]]) -> tuple[Intervention, ...]:
    """What `to_json` wrote; unknown kinds and fields are refused."""
    kinds = {cls.kind: cls for cls in _below(Intervention) if cls.kind}
    read: list[Intervention] = []
    for d in data:
        kind = d.get("kind") if isinstance(d, Mapping) else d
        if kind not in kinds:
            raise InterventionError(f"no intervention of kind {kind!r}; there are {', '.join(kinds)}")
        rest = {k: v for k, v in d.items() if k != "kind"}
        read.append(from_dict(kinds[kind], rest, InterventionError))
    return tuple(read)

"""A question's view: what a page of it shows, computed, and the page."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import ascii_uppercase as LETTERS
from typing import Any

import numpy as np
import torch

from hookedvid.errors import InputError
from hookedvid.model.answers import check_option_tokens, real_tokens
from hookedvid.model.lens import texts_of
from hookedvid.model.merging import places
from hookedvid.nn.model import Model
from hookedvid.sweep.run import check_sweepable
from hookedvid.values.files import write_text
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import LV_K, VS_K, VT_K, Intervention, as_interventions
from hookedvid.values.layout import FrameBlendWarning, TokenLayout
from hookedvid.values.places import TokenPlaces
from hookedvid.viewer import page
from hookedvid.viewer.cuts import CutEffects, n_cuts, read_cuts, under
from hookedvid.viewer.maps import Maps, QueryMaps, number_maps, read_maps
from hookedvid.viewer.pictures import Pictures, pictures
from hookedvid.viewer.queries import Query, queries_of, within

BUDGET = 20_000_000
BASE64 = 4 / 3  # letters for a byte
FOR_FRAMES = 0.15  # of the budget
FOR_PAGE = 100_000  # bytes of script, style and text
N_NEXT = 5  # likeliest next tokens, where there are no options


@dataclass(frozen=True, eq=False)
class View:
    """Everything a page shows of one question.

    Attributes:
        about: Title, question, model and what else is said in words; keys of JSON.
        layout: Of the prompt.
        tokens: The text of each position; empty at those of the video.
        places: Of its video positions.
        pictures: Of its frames.
        queries: Whose attention is in `maps`; `left_out` are those that the budget had no room for.
        maps: Of one run of the prompt.
        vocabulary: The words of the lens's tokens.
        candidates: Texts of the next tokens whose probabilities are told, and `conditions` these under each condition,
            as natural logarithms, the whole prompt's under `baseline`.
        cuts: What cutting each step does to them.
    """

    about: dict[str, Any]
    layout: TokenLayout
    tokens: tuple[str, ...]
    places: TokenPlaces
    pictures: Pictures
    queries: tuple[Query, ...]
    maps: Maps
    vocabulary: dict[int, str]
    candidates: tuple[str, ...]
    conditions: dict[str, np.ndarray]
    cuts: tuple[CutEffects, ...]
    left_out: tuple[str, ...] = ()
    _html: list[str] = field(default_factory=list[str], repr=False)

    @property
    def html(self) -> str:
        """The page: one file that needs nothing beside it."""
        if not self._html:
            self._html.append(page.render(self))
        return self._html[0]

    def save(self, path: str | Path) -> Path:
        """Write the page; where it is."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.html)
        return path

    def with_numbers(self, numbers: Mapping[str, Any]) -> "View":
        """The view with numbers of each video token to choose beside queries: an SAE's feature, what a lens reads.

        They come on top of the page's budget, a byte for each token and layer before compression.

        Args:
            numbers: By the name they go by: [video position] for all layers, or [layer, video position], in the order
                of `places.position`; none below 0.

        Raises:
            InputError: For other shapes, numbers below 0 or not finite, and names that are there.
        """
        n_layers, n = len(self.maps.sinks), len(self.places.position)
        maps, queries = dict(self.maps.queries), list(self.queries)
        for name, given in numbers.items():
            values = torch.as_tensor(given).detach().double().cpu()
            if values.shape not in ((n,), (n_layers, n)):
                raise InputError(f"{name!r} is {tuple(values.shape)}; give a number for each of {n} video positions")
            if not bool((torch.isfinite(values) & (values >= 0)).all()) or name in maps:
                raise InputError(f"{name!r} is there already, or holds numbers below 0 or not finite")
            maps[name] = number_maps(values.expand(n_layers, n), self.layout, self.maps.sinks)
            queries.append(Query(name, (), numbers=True))
        return replace(self, queries=tuple(queries), maps=replace(self.maps, queries=maps), _html=[])

    def __repr__(self) -> str:
        apart = sum(q.apart for q in self.queries)
        return f"View({self.about['question']!r:.60}, {len(self.queries)} queries, heads apart in {apart})"

    def _repr_html_(self) -> str:
        return page.in_frame(self.html)


def view(
    model: Model,
    inputs: VideoInputs,
    conditions: Iterable[Any] | Intervention | None = None,
    *,
    sources: Mapping[str, Any] | None = None,
    answer: int | None = None,
    queries: Sequence[str] = (),
    cuts: Sequence[str] = ("text", "last"),
    n_words: int = 3,
    budget: int = BUDGET,
    question: str = "",
    about: dict[str, Any] | None = None,
) -> View:
    """One question as a page of its own: frames, attention on them, what cutting each costs, words of a lens.

    Costs a run of the prompt for attention and lens, one for each condition, and a sweep over the steps of the video,
    in all layers and in each. The page is about the end of the prompt: an answer that the inputs hold is left out.

    Args:
        model: The model.
        inputs: Of one item, with a video.
        conditions: Interventions whose answers stand beside the baseline's, each one, several or a line of text;
            LV-K, VT-K and VS-K in all layers unless given.
        sources: What they name, as in `forward`.
        answer: The right option (0-based), where it is known.
        queries: Selectors whose attention is shown too, the mean over their positions.
        cuts: Selectors of those who may not look at a step of the video, one set of effects each. None of them: no
            sweep is made.
        n_words: Words of the logit lens at each position and layer; 0 for none.
        budget: Bytes of the page. To keep to it, heads are averaged and single tokens left out, which the page says.
        question: What is asked, as the page's title; the prompt's question unless given.
        about: More to be said of it: `id`, `family`.

    Raises:
        InputError: On a batch, without a video, and where the budget is too small for the least that a page shows.
    """
    inputs = _prompt(inputs)
    layout = inputs.layout
    _check(model, inputs, answer, cuts)
    whole, tokens = queries_of(layout, queries)
    shown = pictures(model, inputs, FOR_FRAMES * budget)
    room = _room(model, inputs, shown, n_words, cuts, budget)
    rows = _cost(model, layout)
    asked_for = within(room, whole, tokens, lambda q, apart: rows * (1 + model.cfg.n_heads * apart))
    inputs = model.encoded(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FrameBlendWarning)  # the page says so
        maps, chosen = _kept(read_maps(model, inputs, asked_for, n_words), asked_for, room)
        candidates = _candidates(model, inputs, maps.logits)
        intact, effects = read_cuts(model, inputs, cuts, candidates)
        asked = {"baseline": intact, **under(model, inputs, _conditions(conditions, layout), candidates, sources)}
    texts, said, kept = _texts(model, inputs), _candidate_texts(model, inputs, candidates), {q.name for q in chosen}
    more = {**_about(model, inputs, question, texts, answer, asked), "budget": budget, **(about or {})}
    vocabulary = texts_of(model, {*maps.words.flatten().tolist()})
    left_out = tuple(q.name for q in (*whole, *tokens) if q.name not in kept)
    return View(
        more, layout, texts, places(model, inputs), shown, tuple(chosen), maps, vocabulary, said, asked,
        tuple(effects), left_out,
    )  # fmt: skip


def _check(model: Model, inputs: VideoInputs, answer: int | None, cuts: Sequence[str]) -> None:
    """Raise InputError, before anything long has run, for what can be told of then."""
    if answer is not None and not 0 <= answer < len(_options(inputs)):
        raise InputError(f"answer {answer} is none of the {len(_options(inputs))} options (counted from 0)")
    for dst in cuts:
        inputs.layout.positions(dst)
    if cuts:
        check_sweepable(model)


def _prompt(inputs: VideoInputs) -> VideoInputs:
    """Inputs without the answer they may hold, nor its part of any group."""
    layout, n = inputs.layout, inputs.layout.n_prompt
    prompt = tuple(s for s in layout.segments if s.role != "generated")
    held = ((name, tuple(p for p in positions if p < n)) for name, positions in layout.groups)
    groups = tuple((name, positions) for name, positions in held if positions)
    return replace(inputs, tokens=inputs.tokens[:, :n], layouts=(replace(layout, segments=prompt, groups=groups),))


def _options(inputs: VideoInputs) -> tuple[str, ...]:
    return inputs.options[0] if inputs.options else ()


def _cost(model: Model, layout: TokenLayout) -> float:
    """Bytes that a head's maps of one query may take in all layers: of each position, of the scale and of columns.

    They are read as if compressed to half; those that do not come out so small are left again.
    """
    n_columns = len(layout.steps) + len(layout.roles)
    return BASE64 * model.cfg.n_layers * (layout.n_tokens + 4 * (1 + n_columns)) / 2


def _kept(maps: Maps, read: Sequence[Query], room: float | int) -> tuple[Maps, list[Query]]:
    """The maps that have room, and whose they are: heads go first where there is too little."""
    sizes = {q.name: [_size(maps.queries[q.name].mean), _size(maps.queries[q.name])] for q in read}
    whole, tokens = ([q for q in read if q.name.startswith("@") == single] for single in (False, True))
    apart = {q.name for q in read if q.apart}

    def price(q: Query, heads: bool) -> float | int:
        return math.inf if heads and q.name not in apart else sizes[q.name][heads]

    chosen = within(room, whole, tokens, price)
    queries = {q.name: maps.queries[q.name] if q.apart else maps.queries[q.name].mean for q in chosen}
    return replace(maps, queries=queries), chosen


def _size(maps: QueryMaps) -> int:
    return sum(len(page.packed(a)) for a in maps.arrays().values())


def _room(model: Model, inputs: VideoInputs, shown: Pictures, n_words: int, cuts: Sequence[str], budget: int) -> float:
    """Bytes that are left for maps."""
    layout, cfg = inputs.layout, model.cfg
    words = cfg.n_layers * layout.n_tokens * n_words
    vocabulary = min(words, cfg.d_vocab) * 12  # a word, quotes and comma
    n_bytes = sum(map(len, shown.files)) + 5 * words  # of a word its number, below 2^32, and a byte
    n_bytes += n_cuts(inputs, cfg.n_layers, cuts) * 4 * max(len(inputs.option_tokens[0]), N_NEXT)
    n_bytes += 40 * layout.n_tokens  # where tokens are
    return budget - FOR_PAGE - vocabulary - BASE64 * n_bytes


def _conditions(conditions: Iterable[Any] | Intervention | None, layout: TokenLayout) -> list[tuple[Intervention, ...]]:
    if isinstance(conditions, str | Intervention):
        conditions = [conditions]
    if conditions is not None:
        return [as_interventions(c) for c in conditions]
    return [(k,) for k in (LV_K, VT_K, VS_K) if k is not VT_K or len(layout.steps) > 1]  # which one step has not


def _candidates(model: Model, inputs: VideoInputs, logits: torch.Tensor) -> list[int]:
    """The options' letters, or the likeliest next tokens."""
    if inputs.option_tokens and inputs.option_tokens[0]:
        check_option_tokens(inputs.option_tokens[0])
        return list(inputs.option_tokens[0])
    real = real_tokens(logits, model.cfg.n_tokens)
    return real.topk(min(N_NEXT, len(real))).indices.tolist()


def _candidate_texts(model: Model, inputs: VideoInputs, candidates: Sequence[int]) -> tuple[str, ...]:
    if inputs.option_tokens and inputs.option_tokens[0]:
        return tuple(f"{letter}. {o}" for letter, o in zip(LETTERS, inputs.options[0], strict=False))
    return tuple(texts_of(model, candidates)[i] for i in candidates)


def _texts(model: Model, inputs: VideoInputs) -> tuple[str, ...]:
    ids: list[int] = inputs.tokens[0].tolist()
    words = texts_of(model, {i for i in ids if i >= 0})
    return tuple(words.get(i, "") for i in ids)


def _about(
    model: Model, inputs: VideoInputs, question: str, texts: Sequence[str], answer: int | None,
    asked: dict[str, np.ndarray],
) -> dict[str, Any]:  # fmt: skip
    layout, cfg = inputs.layout, model.cfg
    options = _options(inputs)
    if not question:
        asked_at = [p for s in layout.segments if s.role == "question" for p in range(s.start, s.stop)]
        ids: list[int] = inputs.tokens[0, asked_at].tolist()
        # Decoded together: a letter may be of several tokens, and some tokenizers drop a single word's space.
        question = "".join(texts[p] for p in asked_at) if model.tokenizer is None else model.tokenizer.decode(ids)
    # Options of equal text are equally right.
    right = None if answer is None else {n: options[int(np.argmax(p))] == options[answer] for n, p in asked.items()}
    return {
        "question": question.strip(),
        "options": list(options),
        "answer": answer,
        "outcome": [] if right is None else outcomes(right),
        "model": cfg.model_name or cfg.family,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "kernel": model.kernel,
        "n_frames": layout.n_frames,
        "n_layers": cfg.n_layers,
        "n_heads": cfg.n_heads,
        "n_tokens": layout.n_tokens,
    }


def outcomes(right: dict[str, bool]) -> list[str]:
    """What an index filters by: how the baseline answered, and which conditions changed that."""
    first = right["baseline"]
    turned = "turned wrong by" if first else "turned right by"
    return ["right" if first else "wrong", *(f"{turned} {n}" for n, r in right.items() if r != first)]

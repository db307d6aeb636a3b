"""What a stream would say were it the last block's: the logit lens, and lenses that map a layer's stream first.

The vocabulary is multiplied with a few rows at a time, and the likeliest words alone are kept.
"""

# What has no stubs of its own: pandas.
# pyright: reportMissingTypeStubs=false
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hookedvid.errors import InputError
from hookedvid.model.answers import real_tokens
from hookedvid.model.cache import rows_held
from hookedvid.model.counterfactual import shown
from hookedvid.model.leaving import RunRecord
from hookedvid.nn.model import Model
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.places import place_labels
from hookedvid.values.selectors import as_selector
from hookedvid.values.serial import as_whole, counted
from hookedvid.values.tensors import floats, ints

if TYPE_CHECKING:
    import pandas as pd

LOGITS = 1 << 24  # logits that a lens holds at once: 64 MiB in float32
# A layer's map of the stream: a matrix, which multiplies it from the left, or that and what is added then.
Map = Float[Tensor, "d_model d_model"] | tuple[Float[Tensor, "d_model d_model"], Float[Tensor, " d_model"]]


class LensCells(NamedTuple):
    """The words of cells by layer, frame, row and column.

    Attributes:
        frames: Numbers of the axis of frames: the first of those that share tokens.
        tokens: Ids, the likeliest first; -1 where no token is.
        probs: Their probabilities; NaN there.
    """

    frames: tuple[int, ...]
    tokens: Int[Tensor, "layer frame row column word"]
    probs: Float[Tensor, "layer frame row column word"]


@dataclass(frozen=True, eq=False)
class LensTable:
    """The likeliest words of each chosen position after each chosen layer.

    Attributes:
        layers: 0-based, ascending.
        positions: Of the layout, ascending; `frame` (the first of those that share it), `row` and `column` of each, -1
            of what is in none.
        tokens: Ids, the likeliest first; `probs` their probabilities over all real tokens.
        of: The ids whose probabilities were asked for; `of_probs` these.
        words: The texts of all tokens here, by id.
    """

    layers: tuple[int, ...]
    positions: Int[Tensor, " pos"]
    frame: Int[Tensor, " pos"]
    row: Int[Tensor, " pos"]
    column: Int[Tensor, " pos"]
    tokens: Int[Tensor, "layer pos word"]
    probs: Float[Tensor, "layer pos word"]
    of: tuple[int, ...]
    of_probs: Float[Tensor, "layer pos of"]
    words: Mapping[int, str]

    def __repr__(self) -> str:
        n = self.tokens.shape[-1]
        return f"LensTable: {n} words of {len(self.positions)} positions after {len(self.layers)} layers"

    @property
    def cells(self) -> LensCells:
        """Its words by layer, frame, row and column.

        Raises:
            InputError: Where no position is in a cell: text, newlines, merged tokens.
        """
        here = (self.row >= 0).nonzero()[:, 0]
        if not len(here):
            raise InputError("none of these positions is in a cell of a frame; take them by .positions")
        frames = sorted(set(ints(self.frame[here])))
        number = torch.searchsorted(torch.tensor(frames), self.frame[here])
        shape = (len(frames), int(self.row[here].max()) + 1, int(self.column[here].max()) + 1)
        at = (slice(None), number, self.row[here], self.column[here])
        tokens = self.tokens.new_full((len(self.layers), *shape, self.tokens.shape[-1]), -1)
        probs = self.probs.new_full(tokens.shape, float("nan"))
        tokens[at], probs[at] = self.tokens[:, here], self.probs[:, here]
        return LensCells(tuple(frames), tokens, probs)

    def frame_words(self, layer: int, frame: int) -> list[list[str]]:
        """The likeliest word of each cell of a frame after a layer: rows of columns, empty where no token is.

        Raises:
            InputError: For a layer that was not read, and a frame without cells among the positions.
        """
        if layer not in self.layers:
            raise InputError(f"layer {layer} was not read; there are {', '.join(map(str, self.layers))}")
        cells = self.cells
        if frame not in cells.frames:
            raise InputError(
                f"no cell of frame {frame} is among the positions; frames that share tokens go by the first of them: "
                f"{', '.join(map(str, cells.frames))}"
            )
        best = cells.tokens[self.layers.index(layer), cells.frames.index(frame), :, :, 0]
        return [["" if i < 0 else self.words[i] for i in ints(row)] for row in best]

    def to_frame(self) -> "pd.DataFrame":
        """A pandas table, a row for each layer, position and word; `rank` 0 is the likeliest."""
        import pandas as pd

        n_layers, n_pos, n_words = self.tokens.shape
        ids = ints(self.tokens.flatten())
        of_pos = {name: getattr(self, name) for name in ("frame", "row", "column")} | {"position": self.positions}
        columns: dict[str, Any] = {
            "layer": [layer for layer in self.layers for _ in range(n_pos * n_words)],
            **{n: ints(x[None, :, None].expand(n_layers, n_pos, n_words).flatten()) for n, x in of_pos.items()},
            "rank": list(range(n_words)) * (n_layers * n_pos),
            "token": ids,
            "word": [self.words[i] for i in ids],
            "prob": floats(self.probs.flatten()),
        }
        return pd.DataFrame(columns)


def stream_logits(model: Model, stream: Float[Tensor, "*pos d_model"]) -> Float[Tensor, "*pos n_tokens"]:
    """The logits of real tokens that the last norm and the unembedding make of a stream."""
    return real_tokens(model.unembed(model.ln_final.plain(stream)), model.cfg.n_tokens)


def answer_logits(model: Model, inputs: VideoInputs, item: int, stream: Float[Tensor, " d_model"]) -> Tensor:
    """The logits of what an item could answer, were its last position's stream the last block's: options, or tokens."""
    logits, options = stream_logits(model, stream), inputs.option_tokens[item]
    return logits[torch.tensor(options, device=logits.device)] if options else logits


def likeliest(
    model: Model, stream: Float[Tensor, "pos d_model"], n_words: int, of: Sequence[int] = ()
) -> tuple[Int[Tensor, "pos word"], Float[Tensor, "pos word"], Float[Tensor, "pos of"]]:
    """Of each position the likeliest tokens, their probabilities, and those of some tokens; on the CPU.

    No more than `LOGITS` logits are there at once, or those of one position.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    wanted = torch.tensor(of, dtype=torch.long, device=stream.device)
    for some in torch.split(stream, max(1, LOGITS // model.cfg.d_vocab)):
        logits = stream_logits(model, some)
        probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
        best = probs.topk(min(n_words, probs.shape[-1]))
        parts.append((best.indices.cpu(), best.values.cpu(), probs[:, wanted].cpu()))
    tokens, probs, of_probs = (torch.cat(x) for x in zip(*parts, strict=True))
    return tokens, probs, of_probs


def texts_of(model: Model, tokens: Iterable[int]) -> dict[int, str]:
    """The text of each token, by id; its number where the model has no tokenizer."""
    if model.tokenizer is None:
        return {i: f"#{i}" for i in tokens}
    return {i: model.tokenizer.decode([i]) for i in tokens}


@torch.no_grad()
def lens(
    model: Model,
    inputs: VideoInputs,
    at: str | Sequence[str] = "video",
    layers: int | Iterable[int] | None = None,
    *,
    n_words: int = 5,
    of: int | str | Sequence[int | str] = (),
    maps: Mapping[int, Map] | None = None,
    interventions: Any = None,
    sources: Mapping[str, Any] | None = None,
) -> LensTable:
    """The likeliest next words of positions after each layer, as a table by frame, row, column and layer.

    One run; each layer's stream is read as the block gives it (`resid_post`) by the model's own last norm and
    unembedding. Beside the run it holds 2^24 logits and as many probabilities at most, 128 MiB in float32.

    Args:
        model: The model.
        inputs: Of one item.
        at: A selector.
        layers: 0-based; all unless given, or those that have a map and the last.
        n_words: Of each position.
        of: Tokens whose probabilities are told besides: ids, or texts of one token.
        maps: Of layers, what makes of the stream h behind a block what the last norm reads: a matrix A gives A h, a
            pair (A, b) gives A h + b, in float32 at least. The last layer needs none. A Jacobian lens is its own
            matrices; a tuned lens of translators h + (W h + b) is (1 + W, b).
        interventions: As of `forward`.
        sources: As of `forward`.

    Raises:
        InputError: On a batch, for layers, positions and tokens that are not there, layers without a map, and
            maps of another shape or not finite.
    """
    inputs = model.inputs_of(inputs)
    inputs.layout  # noqa: B018 - raises on a batch
    inputs, rest = shown(model, inputs, interventions)
    wanted, checked = _checked(model, layers, maps)
    ids = _tokens(model, of)
    positions, record = inputs.layout.positions(as_selector(at)), RunRecord()
    if not len(positions):
        raise InputError(f"no position of {at!r} is in this sequence")
    found: list[tuple[Tensor, Tensor, Tensor]] = []

    def read(resid: Tensor, hook: Any) -> None:
        layer = int(hook.name.split(".")[1])
        rows = rows_held(record.rows, layer, 0, positions)
        stream = resid[0, rows.to(resid.device)]
        if layer in checked:
            stream = _mapped(stream, *checked[layer])
        found.append(likeliest(model, stream, counted("n_words", n_words), ids))

    model.run_with_hooks(
        inputs, fwd_hooks=[(f"blocks.{i}.hook_resid_post", read) for i in wanted], interventions=rest,
        sources=sources, record=record, return_type=None, stop_at_layer=wanted[-1] + 1,
    )  # fmt: skip
    tokens, probs, of_probs = (torch.stack(x) for x in zip(*found, strict=True))
    _, frame, row, column = place_labels(inputs.layout)[positions].unbind(1)
    words = texts_of(model, sorted({*ints(tokens.flatten()), *ids}))
    return LensTable(tuple(wanted), positions, frame, row, column, tokens, probs, ids, of_probs, words)


def _tokens(model: Model, of: Any) -> tuple[int, ...]:
    """Ids of tokens, by ids or texts of one token."""
    several = (of,) if isinstance(of, str) or not isinstance(of, Iterable) else cast(Iterable[Any], of)
    n = model.cfg.n_tokens or model.cfg.lm.d_vocab
    ids = {t: model.to_single_token(t) if isinstance(t, str) else as_whole(t) for t in several}
    if wrong := [t for t, i in ids.items() if i is None or not 0 <= i < n]:
        raise InputError(f"{wrong[0]!r} is no token: ids are whole numbers from 0 to {n - 1}")
    return tuple(cast(Iterable[int], ids.values()))


def _checked(
    model: Model, layers: int | Iterable[int] | None, maps: Mapping[int, Map] | None
) -> tuple[list[int], dict[int, tuple[Tensor, Tensor | None]]]:
    """The layers that are read, ascending, and their maps."""
    n_layers = model.cfg.n_layers
    checked = {_block(i, n_layers): _map(i, m, model.cfg.lm.d_model) for i, m in (maps or {}).items()}
    default = range(n_layers) if maps is None else {*checked, n_layers - 1}
    if layers is not None:
        default = layers if isinstance(layers, Iterable) else [layers]
    wanted = sorted({_block(i, n_layers) for i in default})
    if len(checked) < len(maps or {}):
        raise InputError(f"maps names a layer twice: {list(maps or {})}")
    if maps is not None and (bare := [i for i in wanted if i not in checked and i < n_layers - 1]):
        raise InputError(f"maps has none for layers {bare}; it has them for {sorted(checked)}")
    if not wanted:
        raise InputError("no layers are asked for; leave layers out for all of them")
    return wanted, checked


def _block(layer: Any, n_layers: int) -> int:
    number = as_whole(layer)
    if number is None or not -n_layers <= number < n_layers:
        raise InputError(f"layer {layer!r} is none of this model's: there are blocks 0 to {n_layers - 1}")
    return number % n_layers


def _map(layer: int, given: Any, d_model: int) -> tuple[Tensor, Tensor | None]:
    matrix, bias = cast(tuple[Any, Any], given if isinstance(given, tuple) else (given, None))
    shapes = [tuple(x.shape) if isinstance(x, Tensor) and x.is_floating_point() else None for x in (matrix, bias)]
    if shapes[0] != (d_model, d_model) or (bias is not None and shapes[1] != (d_model,)):
        raise InputError(
            f"the map of layer {layer} is {shapes[0]}" + (f" and {shapes[1]}" if bias is not None else "") + f"; give "
            f"a matrix of real numbers [{d_model}, {d_model}], or it and what is added, [{d_model}]"
        )
    if not all(bool(torch.isfinite(x).all()) for x in (matrix, bias) if x is not None):
        raise InputError(f"the map of layer {layer} is not finite")
    return matrix, bias


def _mapped(stream: Float[Tensor, "pos d_model"], matrix: Tensor, bias: Tensor | None) -> Float[Tensor, "pos d_model"]:
    wide = torch.promote_types(stream.dtype, torch.float32)
    mapped = stream.to(wide) @ matrix.to(stream.device, wide).T
    return (mapped if bias is None else mapped + bias.to(mapped)).to(stream.dtype)

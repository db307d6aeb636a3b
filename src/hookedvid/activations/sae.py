"""Sparse autoencoders and transcoders on a hook point: features of rows, edits of one, what a reconstruction loses."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hookedvid.errors import InputError
from hookedvid.model.answers import is_predicted
from hookedvid.nn.model import Model
from hookedvid.values.hook_names import part_of
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.serial import as_whole, is_number
from hookedvid.values.writes import Edit

FEATURES = 1 << 24  # numbers that are held at once where not all are asked for: 64 MiB in float32


@dataclass(frozen=True, eq=False)
class Parts:
    """The numbers of an encoder and a decoder.

    Attributes:
        W_enc, b_enc: Of the encoder.
        W_dec, b_dec: Of the decoder.
        b_in: Taken off what is read; None: nothing.
        threshold: Below or at which a feature is 0 (JumpReLU); None: 0 (ReLU).
        k: How many features of a row are kept, the largest; None: all.
        W_skip: What is read times this is added to what is written (skip transcoders).
    """

    W_enc: Float[Tensor, "d_in feature"]
    b_enc: Float[Tensor, " feature"]
    W_dec: Float[Tensor, "feature d_out"]
    b_dec: Float[Tensor, " d_out"]
    b_in: Float[Tensor, " d_in"] | None = None
    threshold: Float[Tensor, "#feature"] | None = None
    k: int | None = None
    W_skip: Float[Tensor, "d_in d_out"] | None = None


class SAE(nn.Module):
    """Features f of rows x, and rows of features.

    pre = (x - b_in) W_enc + b_enc; f = ReLU(pre) where pre is above the threshold, of these the k largest; decoded,
    f W_dec + b_dec (+ x W_skip). A gated SAE is one with a threshold (`sae_files`).

    Args:
        parts: Its numbers, which are no parameters: nothing here trains them.
        hook: Full name of the hook point it was made for, where its files say so; `hook_out` of what it writes to, if
            that is another (a transcoder's).
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    b_in: Tensor
    threshold: Tensor
    W_skip: Tensor | None

    def __init__(self, parts: Parts, hook: str = "", hook_out: str = ""):
        super().__init__()
        _check(parts)
        given = vars(parts) | {
            "b_in": parts.W_enc.new_zeros(parts.W_enc.shape[0]) if parts.b_in is None else parts.b_in,
            "threshold": parts.b_enc.new_zeros(1) if parts.threshold is None else parts.threshold,
        }
        self.k, given = parts.k, {name: x for name, x in given.items() if name != "k"}
        for name, x in given.items():
            self.register_buffer(name, None if x is None else x.detach().to(parts.W_enc.dtype).contiguous())
        self.hook, self.hook_out = hook, hook_out or hook

    @property
    def d_in(self) -> int:
        """How many numbers of a row it reads."""
        return self.W_enc.shape[0]

    @property
    def n_features(self) -> int:
        """How many features it has."""
        return self.W_enc.shape[1]

    @property
    def writes_elsewhere(self) -> bool:
        """Whether it is a transcoder: what it writes is no reconstruction of what it reads."""
        return self.hook != self.hook_out or self.W_skip is not None or self.d_in != self.W_dec.shape[1]

    def __repr__(self) -> str:
        kind = f"top {self.k}" if self.k else "JumpReLU" if bool((self.threshold != 0).any()) else "ReLU"
        to = f" to {self.hook_out}" if self.hook_out != self.hook else ""
        return f"SAE: {self.n_features} features of {self.d_in} numbers, {kind}" + (
            f", {self.hook}{to}" if self.hook else ""
        )

    def encode(
        self, x: Float[Tensor, "*rows d_in"], only: Sequence[int] | None = None
    ) -> Float[Tensor, "*rows feature"]:
        """The features of rows, in its own dtype.

        Args:
            x: Rows.
            only: Numbers of the features that are wanted; all unless given, as many numbers as rows times features.
                With it no more than 2^24 are held at once.

        Raises:
            InputError: For rows of other sizes, and features that are not there.
        """
        if x.shape[-1] != self.d_in:
            raise InputError(
                f"rows hold {x.shape[-1]} numbers, and this SAE reads {self.d_in}"
                + (f" of {self.hook}" if self.hook else "")
                + "; heads are given flattened, rows.flatten(-2)"
            )
        if only is None:
            return self._features(x)
        if not all(as_whole(i) is not None and 0 <= i < self.n_features for i in only):
            raise InputError(f"features {list(only)} are not all among {self.n_features}, numbered from 0")
        return self._in_pieces(lambda some: self._features(some)[:, list(only)], x)

    def _features(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows feature"]:
        pre = (x.to(self.W_enc) - self.b_in) @ self.W_enc + self.b_enc
        features = pre.relu() * (pre > self.threshold)
        if self.k is None:
            return features
        best = features.topk(self.k, -1)
        return torch.zeros_like(features).scatter(-1, best.indices, best.values)

    def _in_pieces(self, of: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """A function of rows, of a few at a time, so that their features are never too many."""
        pieces = x.reshape(x.shape[:-1].numel(), x.shape[-1]).split(max(1, FEATURES // self.n_features))
        found = torch.cat([of(some) for some in pieces])
        return found.view(*x.shape[:-1], found.shape[-1])

    def decode(
        self, features: Float[Tensor, "*rows feature"], x: Float[Tensor, "*rows d_in"] | None = None
    ) -> Float[Tensor, "*rows d_out"]:
        """The rows that features stand for; `x` is what was read, which a skip transcoder needs.

        Raises:
            InputError: Where it is needed and missing.
        """
        out = features.to(self.W_dec) @ self.W_dec + self.b_dec
        if self.W_skip is None:
            return out
        if x is None:
            raise InputError("this transcoder adds what it reads times a matrix: give decode the rows that it read")
        return out + x.to(self.W_skip) @ self.W_skip

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """Rows encoded and decoded, with 2^24 features at once at most."""
        return self._in_pieces(lambda some: self.decode(self.encode(some), some), x)

    def edit(
        self,
        hook: str,
        layers: Any,
        feature: int,
        *,
        value: float | int | None = None,
        scale: float | int | None = None,
        at: str = "all",
    ) -> Edit:
        """An intervention that sets a feature, or scales it; what the SAE does not reconstruct stays as it is.

        Rows x become x + (new - f) W_dec[feature].

        Args:
            hook: As of `Edit`.
            layers: As of `Edit`.
            feature: Its number, 0-based.
            value: That it has then; 0 takes it away.
            scale: That it is multiplied by instead.
            at: As of `Edit`.

        Raises:
            InputError: For a transcoder, whose features are not read where they are written, and a feature that is not
                there.
        """
        if self.writes_elsewhere:
            raise InputError(
                "a transcoder's features are read at one hook point and written at another, and an edit holds one: add "
                "its decoder's row there, Steer(hook, layers, at, vector=sae.W_dec[feature], scale=…)"
            )
        if as_whole(feature) is None or not 0 <= feature < self.n_features:
            raise InputError(f"feature {feature} is none of {self.n_features}, numbered from 0")
        if (value is None) == (scale is None):
            raise InputError("say what becomes of the feature: value=… sets it, scale=… multiplies it")
        by = scale if value is None else value
        if by is None or not is_number(by) or not math.isfinite(by):
            raise InputError(f"a feature becomes a number or a multiple of itself, not {by!r}")

        def changed(rows: Tensor) -> Tensor:
            flat = rows.flatten(2)
            now = self.encode(flat, [feature])
            new = torch.full_like(now, value or 0) if scale is None else now * scale
            return (flat + ((new - now) * self.W_dec[feature]).to(flat)).view_as(rows)

        done = f"= {value:g}" if value is not None else f"x {scale:g}"
        return Edit(hook, layers, changed, at, name=f"feature {feature} {done}")


class LossRecovered(NamedTuple):
    """The mean cross entropy of next text tokens, in nats: as the model is, with rows reconstructed, and with zeros.

    Attributes:
        recovered: (zeros - reconstructed) / (zeros - intact): 1 where nothing is lost.
        n_tokens: That were predicted.
    """

    intact: float
    reconstructed: float
    zeros: float
    recovered: float
    n_tokens: int

    def __repr__(self) -> str:
        nats = f"{self.intact:.3f} nats intact, {self.reconstructed:.3f} reconstructed, {self.zeros:.3f} by zeros"
        return f"LossRecovered: {self.recovered:.3f} recovered; {nats}; {self.n_tokens} tokens"


@torch.no_grad()
def loss_recovered(
    model: Model,
    inputs: VideoInputs | Iterable[VideoInputs],
    sae: SAE,
    layer: int | None = None,
    *,
    hook: str = "",
    hook_out: str = "",
    at: str = "all",
) -> LossRecovered:
    """What a model's loss keeps when a hook point is replaced by an SAE's reconstruction of it, or a transcoder's.

    Three runs of each input.

    Args:
        model: That the SAE was made for.
        inputs: One, or several: single items or batches, of whose text tokens the loss is.
        sae: As loaded.
        layer: Of `hook`, where that is a short name.
        hook: What it reads; what its files name unless given.
        hook_out: What it writes; what its files name, or `hook`.
        at: Which positions are replaced.

    Raises:
        InputError: Where no hook point is named, or none of these inputs has text to predict.
    """
    if not (hook or sae.hook):
        raise InputError("its files name no hook point; say which it reads: hook='resid_post', and its layer")
    points = (hook or sae.hook, hook_out or hook or sae.hook_out)
    names = [model.names(h if layer is None or "." in h else (h, layer)) for h in points]
    if any(len(n) != 1 or part_of(n[0]) in ("tower", "projector") for n in names):
        raise InputError(f"{points} must each be one hook point of the sequence's positions; say which layer: layer=…")
    (read,), (written,) = names
    total, n = torch.zeros(3, dtype=torch.float64), 0
    for one in (inputs,) if isinstance(inputs, VideoInputs) else inputs:
        chosen = torch.zeros_like(one.tokens, dtype=torch.bool)
        for item, (layout, pad) in enumerate(zip(one.layouts, one.pads, strict=True)):
            chosen[item, pad + layout.positions(at).to(chosen.device)] = True
        if not bool(chosen.any()):
            raise InputError(f"no position of {at!r} is in these inputs, so that nothing is replaced")
        rows = chosen.to(model.device)
        for i, hooks in enumerate(([], _replaced(read, written, rows, sae), [(written, _emptied(rows))])):
            loss = model.run_with_hooks(one, fwd_hooks=hooks, return_type="loss", loss_per_token=True)
            total[i] += loss.double().sum().cpu()
        n += int(is_predicted(one).sum())
    if not n:
        raise InputError("these inputs have no text behind text, of which a loss could be taken")
    intact, reconstructed, zeros = (total / n).tolist()
    gap = zeros - intact
    return LossRecovered(intact, reconstructed, zeros, (zeros - reconstructed) / gap if gap else float("nan"), n)


def _emptied(rows: Bool[Tensor, "batch pos"]) -> Callable[[Tensor, Any], Tensor]:
    return lambda act, hook: act.masked_fill(rows.view(*rows.shape, *[1] * (act.ndim - 2)), 0.0)


def _replaced(read: str, written: str, rows: Bool[Tensor, "batch pos"], sae: SAE) -> list[tuple[str, Any]]:
    """Hooks that put what an SAE makes of one hook point's rows in place of another's, or of its own."""
    made: list[Tensor] = []

    def take(act: Tensor, hook: Any) -> None:
        made.append(sae(act[rows].flatten(1)))

    def put(act: Tensor, hook: Any) -> Tensor:
        act = act.clone()
        act[rows] = made.pop().to(act).view_as(act[rows])
        return act

    return [(read, take), (written, put)]


def _check(parts: Parts) -> None:
    """Raise InputError for numbers that do not fit each other."""
    shapes = {n: tuple(x.shape) for n, x in vars(parts).items() if isinstance(x, Tensor)}
    for name in shapes:
        x: Tensor = getattr(parts, name)
        if not x.is_floating_point() or not bool(torch.isfinite(x).all()):
            raise InputError(f"{name}, {x.dtype}, is not of finite floating-point numbers alone")
    d_in, n = parts.W_enc.shape if parts.W_enc.ndim == 2 else (0, 0)
    d_out = parts.b_dec.shape[-1] if parts.b_dec.ndim else 0
    wanted = {"W_enc": (d_in, n), "b_enc": (n,), "W_dec": (n, d_out), "b_dec": (d_out,), "b_in": (d_in,)}
    wanted |= {"W_skip": (d_in, d_out)}
    wrong = [f"{name} {shapes[name]}" for name in wanted if name in shapes and shapes[name] != wanted[name]]
    if "threshold" in shapes and parts.threshold is not None and parts.threshold.numel() not in (1, n):
        wrong.append(f"threshold {shapes['threshold']}")
    if wrong or not n:
        raise InputError(
            f"these numbers do not fit each other: {', '.join(wrong) or shapes}; with {n} features of {d_in} numbers, "
            f"W_enc is [{d_in}, {n}] and W_dec [{n}, {d_out}]"
        )
    if parts.k is not None and (as_whole(parts.k) is None or not 1 <= parts.k <= n):
        raise InputError(f"k is {parts.k}; give how many of {n} features are kept of a row")

"""Continuing a prompt token by token, hooks and interventions alive at every step."""

# What users give is looked at, whatever its annotation says.
# pyright: reportUnnecessaryIsInstance=false
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from hookedvid.errors import InputError, NonFiniteError
from hookedvid.model.answers import real_tokens
from hookedvid.model.counterfactual import shown
from hookedvid.nn.kv import KVCache
from hookedvid.nn.model import Model
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.serial import counted
from hookedvid.values.tensors import ints

Warper = Callable[[Any, Tensor], Tensor]  # (ids, logits) -> logits; ids are read by none of these


@torch.no_grad()
def generate(
    model: Model,
    input: VideoInputs | Tensor,
    interventions: Any = None,
    *,
    sources: Any = None,
    max_new_tokens: int = 20,
    do_sample: bool = False,
    temperature: float | int = 1.0,
    top_k: float | int | None = None,
    top_p: float | int | None = None,
    generator: torch.Generator | None = None,
    stop_at_eos: bool = True,
    eos_token_id: int | Sequence[int] | None = None,
    stop_strings: str | Sequence[str] | None = (),
    use_past_kv_cache: bool = True,
    streamer: Any = None,
    verbose: bool = False,
    return_type: Literal["text", "tokens"] | None = None,
) -> Any:
    """The continuation of each item: text (one string, or a list for a batch), or ids [batch, new].

    interventions hold for generated tokens too, with and without the key-value cache: LV-K keeps cutting them off
    from the video, an exit's late layers never hold video, an edit writes those that its selector names (`last`,
    `text` and `all` do), a patch those that its source holds. Items of unequal length share a batch.
    do_sample draws with `generator`; greedy otherwise, and at temperature 0. top_k keeps the likeliest tokens (None
    or 0: all), top_p those that make up this share. Raises InputError for numbers that are none of these, and for
    any of the three without do_sample.
    eos_token_id: the tokenizer's and the template's unless given. streamer: anything with transformers' `put` and
    `end`. verbose shows a progress bar.
    return_type: text where the model has a tokenizer, else ids; finished items repeat their last id, texts end there.
    """
    max_new_tokens = counted("max_new_tokens", max_new_tokens)
    warpers = _warpers(do_sample, temperature, top_k, top_p)
    ends = _stop_texts(model, stop_strings, return_type)
    batch, interventions = shown(model, model.inputs_of(input), interventions)
    stops: set[int] = _stop_ids(model, eos_token_id) if stop_at_eos else set()
    cache = KVCache(model.cfg.n_layers) if use_past_kv_cache else None
    new: list[Tensor] = []
    done = torch.zeros(batch.batch_size, dtype=torch.bool, device=batch.tokens.device)
    lengths = torch.zeros_like(done, dtype=torch.long)
    for _ in tqdm(range(max_new_tokens), desc="generating", unit="token", disable=not verbose):
        logits = model(batch, interventions=interventions, sources=sources, kv_cache=cache, logits_to_keep=1)[:, -1]
        chosen = _choose(real_tokens(logits, model.cfg.n_tokens), warpers, generator)
        if new:
            chosen = torch.where(done, new[-1], chosen)
        new.append(chosen)
        lengths += ~done
        if streamer is not None:
            streamer.put(chosen.cpu())
        done |= torch.isin(chosen, torch.tensor(sorted(stops), device=chosen.device, dtype=chosen.dtype))
        if ends:
            done |= _said(model, torch.stack(new, 1), ends).to(done.device)
        if bool(done.all()):
            break
        batch = batch.extend(chosen[:, None])
    if streamer is not None:
        streamer.end()
    return _returned(model, torch.stack(new, 1), lengths, stops, return_type)


def _returned(model: Model, ids: Tensor, lengths: Tensor, stops: set[int], return_type: str | None) -> Any:
    if return_type == "tokens" or (return_type is None and model.tokenizer is None):
        return ids
    texts: list[str] = []
    for row, length in zip(map(ints, ids.cpu()), ints(lengths), strict=True):
        end = next((i for i, t in enumerate(row) if t in stops), length)
        texts.append(model.tokenizer.decode(row[:end], skip_special_tokens=True).strip())
    return texts[0] if len(texts) == 1 else texts


def _stop_texts(model: Model, strings: str | Sequence[str] | None, return_type: str | None) -> tuple[str, ...]:
    if return_type not in (None, "text", "tokens"):
        raise InputError(f"return_type is {return_type!r}; it can be 'text', 'tokens' or None")
    texts = (strings,) if isinstance(strings, str) else tuple(strings or ())
    if any(not isinstance(text, str) for text in texts):
        raise InputError(f"stop strings are texts, and these are {strings!r}; stop at ids by eos_token_id")
    if "" in texts:
        raise InputError("a stop string is empty, which every text holds; leave it out")
    if (texts or return_type == "text") and model.tokenizer is None:
        raise InputError("this model has no tokenizer to make text with; pass one at loading, or return_type='tokens'")
    return texts


def _stop_ids(model: Model, ids: int | Sequence[int] | None) -> set[int]:
    if ids is not None:
        return {ids} if isinstance(ids, int) else set(ids)
    if model.tokenizer is None:
        return set()
    from hookedvid.families.registry import TEMPLATES

    words = TEMPLATES[model.cfg.prompt].stops
    stops = {model.tokenizer.convert_tokens_to_ids(w) for w in words if w in model.tokenizer.get_vocab()}
    return stops | ({model.tokenizer.eos_token_id} - {None})


def _warpers(
    do_sample: bool, temperature: float, top_k: float | int | None, top_p: float | int | None
) -> list[Warper] | None:
    """What changes the logits before a token is drawn; None where the likeliest is taken."""
    # transformers' own warpers: their corner cases are what users compare with.
    from transformers.generation import logits_process as lp

    if not (_is_number(temperature) and 0 <= temperature < math.inf):
        raise InputError(f"temperature is {temperature!r}; give 0 for the likeliest token, or a number above it")
    if top_k is not None and not (_is_number(top_k) and top_k >= 0 and top_k == int(top_k)):
        raise InputError(f"top_k is {top_k!r}; give a whole number of tokens, or 0 for all")
    if top_p is not None and not (_is_number(top_p) and 0 <= top_p <= 1):
        raise InputError(f"top_p is {top_p!r}; give a share of the probability, from 0 to 1")
    warpers: list[Warper] = []
    if temperature not in (0, 1):
        least = torch.finfo(torch.float32).tiny  # what is less would be 0 to the division
        warpers.append(lp.TemperatureLogitsWarper(max(float(temperature), least)))
    if top_k:
        warpers.append(lp.TopKLogitsWarper(int(top_k)))
    if top_p is not None and top_p < 1:
        warpers.append(lp.TopPLogitsWarper(float(top_p)))
    if warpers and temperature > 0 and not do_sample:
        raise InputError("temperature, top_k and top_p act on sampling alone, and this is greedy: pass do_sample=True")
    return warpers if do_sample and temperature > 0 else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _choose(logits: Tensor, warpers: list[Warper] | None, generator: torch.Generator | None) -> Tensor:
    if not bool(torch.isfinite(logits).all()):
        raise NonFiniteError(
            "the logits are not finite: the weights or this dtype overflow, so nothing can be generated"
        )
    if warpers is None:
        return logits.argmax(-1)
    logits = logits - logits.amax(-1, keepdim=True)  # a low temperature would overflow above 0
    for warp in warpers:
        logits = warp(None, logits)
    return torch.multinomial(logits.float().softmax(-1), 1, generator=generator)[:, 0]


def _said(model: Model, ids: Tensor, stop_strings: Sequence[str]) -> Tensor:
    texts = model.tokenizer.batch_decode([ints(row) for row in ids.cpu()])
    return torch.tensor([any(s in t for s in stop_strings) for t in texts])

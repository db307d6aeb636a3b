"""Reading what lmms-eval hands over as text and keywords: interventions, overrides, how to generate."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from hookedvid.errors import ConfigError, InputError
from hookedvid.values.interventions import EarlyExit, Intervention, as_interventions, parse

Value = str | int | float | bool  # what lmms-eval makes of a text in `--model_args`
MAX_NEW_TOKENS = 1024  # where a task sets none, as lmms-eval's wrappers of the LLaVA and InternVideo2.5 families
# lmms-eval puts its few-shot delimiter as `until` where a task has none; no wrapper of our families stops there.
DELIMITER = "\n\n"
GREEDY: dict[str, tuple] = {"do_sample": (False,), "temperature": (0, None), "num_beams": (1, None)}
# Without sampling the first two change nothing; the last is of images.
WITHOUT_EFFECT = ("top_p", "top_k", "image_aspect_ratio")


class Generation(NamedTuple):
    """How to generate, greedily: at most so many tokens, to the first of the texts `until`."""

    max_new_tokens: int
    until: tuple[str, ...]


def interventions(knockout: Value, early_exit: Value | None) -> tuple[Intervention, ...]:
    """From `LV-K @ 4:8; VT-K` (as `parse` reads it) and the number of blocks that see the video."""
    text = str(knockout)
    cuts = parse(text) if text.strip() else ()
    exit_layer = whole("early_exit", early_exit)
    return as_interventions(cuts if exit_layer is None else [*cuts, EarlyExit(exit_layer)])


def whole(name: str, value: Value | None) -> int | None:
    """A count.

    Raises:
        InputError: On what is no whole number.
    """
    if value is not None and type(value) is not int:
        raise InputError(f"{name} is {value!r}; give a whole number")
    return value


def overrides(text: str) -> dict[str, Any]:
    """Config fields by dotted path, from `{"projector.pool": "average"}`."""
    try:
        read = json.loads(text or "{}")
    except ValueError:
        read = None
    if not isinstance(read, dict):
        raise ConfigError(f'overrides are {text!r}; write them as JSON, overrides={{"projector.pool":"average"}}')
    return read


def generation(kwargs: Mapping[str, Any]) -> Generation:
    """A task's `generation_kwargs`.

    Raises:
        InputError: On any that ask for what greedy generation does not do.
    """
    known = ("max_new_tokens", "until", *WITHOUT_EFFECT)
    refused = {k: v for k, v in kwargs.items() if k not in known and v not in GREEDY.get(k, ())}
    if refused:
        raise InputError(
            f"the task asks for {refused}, and hookedvid answers greedily; where that is meant, say so with "
            "--gen_kwargs temperature=0,do_sample=False,num_beams=1, or leave the rest out of the task's "
            "generation_kwargs"
        )
    count = whole("max_new_tokens", kwargs.get("max_new_tokens"))
    until = kwargs.get("until") or ()
    texts = (until,) if isinstance(until, str) else tuple(until)
    return Generation(MAX_NEW_TOKENS if count is None else count, tuple(t for t in texts if t and t != DELIMITER))


def cut(text: str, until: tuple[str, ...]) -> str:
    """What stands before the first of the texts that end an answer."""
    ends = [text.index(u) for u in until if u in text]
    return text[: min(ends)].strip() if ends else text

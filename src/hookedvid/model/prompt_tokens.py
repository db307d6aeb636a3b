"""Prompt text to token ids: whose piece a token is, and what a tokenizer may not make of a user's text.

A user's text is text. The original packages hand the whole prompt to the tokenizer, which makes a control token of a
question's `<|im_end|>` without a word; here such a text is refused.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from string import ascii_uppercase as LETTERS
from typing import Any

from hookedvid.errors import InputError
from hookedvid.families.prompts import Piece, Template, special_strings
from hookedvid.model.answers import check_option_tokens
from hookedvid.nn.model import Model
from hookedvid.values.grid import VideoShape
from hookedvid.values.inputs import VIDEO
from hookedvid.values.layout import Segment, video_segments
from hookedvid.values.serial import is_text

Run = tuple[Segment, list[int]]


class UnknownWordWarning(UserWarning):
    """Words of a prompt that the tokenizer does not know, and reads as one and the same token."""


def check_texts(tokenizer: Any, around: Template, texts: Iterable[str]) -> None:
    """Raises InputError for a user's text that holds a control token, or characters that no UTF-8 text has."""
    special = special_strings(around)
    control = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special or t.content in special]
    for text in texts:
        if marks := [c for c in control if c in text]:
            raise InputError(
                f"{text!r} holds {marks[0]!r}, which this tokenizer reads as a control token and not as text; write it "
                "otherwise, such as with a blank inside"
            )
        if not is_text(text):
            raise InputError(f"{text!r} holds half of a surrogate pair, which is no character; take it out")


def warn_of_unknown_words(tokenizer: Any, texts: Iterable[str], ids: Iterable[int]) -> None:
    """Warn of the words of a user's texts that the tokenizer does not know; `ids` are the whole prompt's."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown not in ids:
        return
    words: dict[str, None] = {}
    for text in texts:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        for token, (start, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if token == unknown:
                words[text[start:stop].strip()] = None
    if words:
        shown = ", ".join(map(repr, list(words)[:8])) + (", …" if len(words) > 8 else "")
        warnings.warn(
            f"this tokenizer does not know {shown}, and reads each as {tokenizer.unk_token!r}",
            UnknownWordWarning,
            stacklevel=4,  # whoever called `prepare`
        )


def end_token(tokenizer: Any, around: Template) -> list[int]:
    """What a finished answer ends with: the template's first stop, else the tokenizer's end of text, if any.

    This is where generation stops. A template's line break behind it begins the next turn and belongs to no answer.
    """
    stops = [tokenizer.convert_tokens_to_ids(stop) for stop in around.stops]
    known = [i for i in (*stops, tokenizer.eos_token_id) if i is not None and i != tokenizer.unk_token_id]
    return known[:1]


def letter_tokens(tokenizer: Any, n: int, prefill: str) -> tuple[int, ...]:
    """The token of each of the first `n` option letters, as an answer's first word or directly behind `prefill`.

    Raises:
        InputError: For a letter that is no token of its own.
    """
    letters: list[int] = []
    for letter in LETTERS[:n]:
        ids = tokenizer(letter, add_special_tokens=False)["input_ids"]
        if prefill:
            begun, whole = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (prefill, prefill + letter))
            ids = whole[-1:] if whole[:-1] == begun else ids  # where the two do not run together
        if len(ids) != 1:
            raise InputError(f"the option letter {letter!r} is {len(ids)} tokens in this tokenizer; it must be one")
        if ids[0] == tokenizer.unk_token_id:
            raise InputError(
                f"this tokenizer does not know the option letter {letter!r}, so that no logit stands for it; ask "
                'without options, or score by "words" or "likelihood"'
            )
        letters += ids
    check_option_tokens(letters)
    return tuple(letters)


def tokenized(model: Model, parts: Sequence[Piece], shape: VideoShape | None) -> list[Run]:
    """Segments with their ids. Text between videos is tokenized as one, as the original code does."""
    whole = [] if shape is None else video_segments(model.cfg, shape)
    spans = {s.frame: s.frames for s in whole}
    out: list[Run] = []
    chunk: list[Piece] = []
    for p in [*parts, None]:
        if p is not None and p.role != "video":
            chunk.append(p)
            continue
        text = _tokenized_text(model.tokenizer, chunk, first=not out)
        out += [(replace(s, frames=spans.get(s.frame, 1) if s.role == "marker" else 1), ids) for s, ids in text]
        chunk = []
        if p is not None:
            out += [(s, [VIDEO] * len(s)) for s in whole if p.frame is None or s.frame == p.frame]
    return out


def _tokenized_text(tokenizer: Any, chunk: Sequence[Piece], first: bool) -> list[Run]:
    """A token belongs to the piece its last character is in; special tokens put in front, to the first."""
    text = ""
    owner: list[int] = []
    for i, p in enumerate(chunk):
        text += p.text
        owner += [i] * len(p.text)
    if not text:
        return []
    encoded = tokenizer(text, add_special_tokens=first, return_offsets_mapping=True)
    ids_of: list[list[int]] = [[] for _ in chunk]
    last = 0
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]
    for token, (start, stop) in zip(encoded["input_ids"], offsets, strict=True):
        piece = owner[stop - 1] if stop > start else 0
        if piece < last:
            raise InputError(
                f"this tokenizer puts the special token {tokenizer.decode([token])!r} after the text; load it "
                "so that it adds tokens in front only (add_eos_token=False)"
            )
        last = piece
        ids_of[piece].append(token)
    return [
        (Segment(p.role, 0, len(ids), frame=p.frame, index=p.index), ids) for p, ids in zip(chunk, ids_of, strict=True)
    ]

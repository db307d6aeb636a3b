"""From a video file and a question to inputs: decode, preprocess, tokenize, lay out."""

from collections.abc import Sequence
from typing import Any

import torch

from hookedvid.answering import LETTERS
from hookedvid.errors import InputError
from hookedvid.inputs import VIDEO, VideoInputs
from hookedvid.layout import Segment, TokenLayout, video_segments
from hookedvid.video.prompt import Piece, pieces, template


def prepare(
    model: Any,
    video: Any,
    question: str,
    options: Sequence[str] = (),
    *,
    n_frames: int | None = None,
    sampler: str | None = None,
    bound: tuple[float | int, float | int] | None = None,
    markers_are_language: bool = False,
) -> VideoInputs:
    """See `HookedVideoLLM.prepare`.

    bound: (start, end) seconds of the clip to sample from. markers_are_language: count the text between
    frames as language (it then belongs to the selector `text`).
    """
    _check_question(model, video, question, options)
    cfg = model.cfg
    pixels = None
    if video is not None:
        from hookedvid.video.frames import read_frames
        from hookedvid.video.transforms import preprocess

        frames = read_frames(video, cfg.n_frames if n_frames is None else n_frames, sampler or cfg.sampler, bound=bound)
        pixels = preprocess(frames, cfg.vision)
    count = 0 if pixels is None else len(pixels)
    runs, ids = [], []
    for segment, tokens in _tokenized(model, pieces(template(cfg.prompt), question, options, count), count):
        runs.append(segment)
        ids += tokens
    layout = TokenLayout.of(runs, markers_are_language)
    letters = tuple(_letter_token(model.tokenizer, LETTERS[i]) for i in range(len(options)))
    inputs = VideoInputs(torch.tensor([ids]), (layout,), (pixels,), (tuple(options),), (letters,))
    return inputs.to(model.device)


def _check_question(model: Any, video: Any, question: str, options: Sequence[str]) -> None:
    if model.cfg.decoder is None:
        raise InputError("this model is a vision tower alone; give it pixels: model(pixel_values)")
    if model.tokenizer is None:
        raise InputError(
            "this model has no tokenizer: pass tokenizer=... where it is made, or use inputs_from_tensors(ids, pixels)"
        )
    if not model.tokenizer.is_fast:
        raise InputError("prompts are laid out by character offsets, which only fast tokenizers give; load a fast one")
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"the question is {question!r}; ask something")
    if isinstance(options, str) or any(not isinstance(o, str) or not o.strip() for o in options):
        raise InputError(f"options must be a list of texts, got {options!r}")
    if len(options) == 1 or len(options) > len(LETTERS):
        raise InputError(f"options must be 2 to {len(LETTERS)} texts, got {list(options)}")
    if video is not None and model.cfg.vision is None:
        raise InputError("this model takes no video; pass None")


def _tokenized(model: Any, parts: Sequence[Piece], n_frames: int) -> list[tuple[Segment, list[int]]]:
    """Segments with their ids. Text between videos is tokenized as one, as the original code does."""
    whole = video_segments(model.cfg.projector, model.cfg.vision.grid, n_frames) if n_frames else []
    out: list[tuple[Segment, list[int]]] = []
    chunk: list[Piece] = []
    for p in [*parts, None]:
        if p is not None and p.role != "video":
            chunk.append(p)
            continue
        out += _tokenized_text(model.tokenizer, chunk, first=not out)
        chunk = []
        if p is not None:
            out += [(s, [VIDEO] * len(s)) for s in whole if p.frame is None or s.frame == p.frame]
    return out


def _tokenized_text(tokenizer: Any, chunk: Sequence[Piece], first: bool) -> list[tuple[Segment, list[int]]]:
    """A token belongs to the piece its last character is in; special tokens put in front, to the first."""
    text, owner = "", []
    for i, p in enumerate(chunk):
        text += p.text
        owner += [i] * len(p.text)
    if not text:
        return []
    encoded = tokenizer(text, add_special_tokens=first, return_offsets_mapping=True)
    ids_of: list[list[int]] = [[] for _ in chunk]
    last = 0
    for token, (start, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
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


def _letter_token(tokenizer: Any, letter: str) -> int:
    ids = tokenizer(letter, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise InputError(f"the option letter {letter!r} is {len(ids)} tokens in this tokenizer; it must be one")
    return ids[0]

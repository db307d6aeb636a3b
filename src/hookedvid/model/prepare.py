"""From a video file and a question to inputs: decode, preprocess, tokenize, lay out."""

# What users give is looked at, whatever its annotation says.
# pyright: reportUnnecessaryIsInstance=false
import bisect
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from string import ascii_uppercase as LETTERS
from typing import Any

import torch

from hookedvid.errors import InputError
from hookedvid.families.prompts import QuestionForm, TimeInstruction, Timing, pieces
from hookedvid.families.registry import named_instruction, template
from hookedvid.model.prompt_tokens import Run, check_texts, end_token, letter_tokens, tokenized, warn_of_unknown_words
from hookedvid.nn.model import Model
from hookedvid.values.inputs import VideoInputs, check_vocabulary
from hookedvid.values.layout import TokenLayout
from hookedvid.values.tensors import ints


def prepare(
    model: Model,
    video: Any,
    question: str,
    options: Sequence[str] = (),
    *,
    answer: str = "",
    n_frames: int | None = None,
    sampler: str | None = None,
    bound: tuple[float | int, float | int] | None = None,
    folder_fps: float | int | None = None,
    time_instruction: str | None = None,
    markers_are_language: bool = False,
    form: QuestionForm | None = None,
) -> VideoInputs:
    """See `HookedVideoLLM.prepare`."""
    _check_question(model, video, question, options, answer)
    form = _checked_form(model, question, options, answer, form)
    cfg = model.cfg
    instruction = named_instruction(time_instruction or cfg.time_instruction)
    clip, timing, count = None, None, 0
    if video is not None:
        from hookedvid.video.frames import Clip, read_clip

        rule: str = sampler or cfg.sampler
        n: int = cfg.n_frames if n_frames is None else n_frames
        known = isinstance(video, Clip)
        clip = video if known else read_clip(video, n, rule, bound=bound, folder_fps=folder_fps)
        count, timing = len(clip.frames), _timing(instruction, clip, rule, bound)

    def laid_out(n_frames: int) -> list[Run]:
        return _laid_out(model, question, options, n_frames, timing, form, answer)

    tokens, layout = _checked(model, count, markers_are_language, laid_out)
    texts = (question, *options, answer, form.subtitles or "")
    warn_of_unknown_words(model.tokenizer, texts, ints(tokens[0]))
    letters = letter_tokens(model.tokenizer, len(options), form.prefill)
    check_vocabulary(cfg, letters)
    inputs = VideoInputs(tokens, (layout,), (_pixels(clip, cfg),), (tuple(options),), (letters,))
    return inputs.to(model.device)


def expected(
    model: Model,
    question: str,
    options: Sequence[str] = (),
    *,
    answer: str = "",
    n_frames: int,
    time_instruction: str,
    markers_are_language: bool = False,
    form: QuestionForm | None = None,
) -> VideoInputs:
    """Tokens and layout that `prepare` gives for a video of that many frames, which nobody opens: its pixels are empty.

    A short clip may have fewer frames under some samplers. A time instruction is written as for a minute of video.
    """
    _check_question(model, "expected", question, options, answer)
    form = _checked_form(model, question, options, answer, form)
    instruction = named_instruction(time_instruction)
    times = tuple(60.0 * i / n_frames for i in range(n_frames))
    timing = Timing(instruction, 60.0, times) if instruction.text else None

    def laid_out(n: int) -> list[Run]:
        return _laid_out(model, question, options, n, timing, form, answer)

    tokens, layout = _checked(model, n_frames, markers_are_language, laid_out)
    return VideoInputs(tokens, (layout,), (torch.empty(n_frames, 3, 0, 0),), (tuple(options),))


def _checked(
    model: Model, n_frames: int, markers_are_language: bool, laid_out: Callable[[int], list[Run]]
) -> tuple[torch.Tensor, TokenLayout]:
    """Ids [1, pos] and their layout; raises InputError for a prompt that is too long, or for ids without a row."""
    runs = laid_out(n_frames)
    _check_length(model, runs, n_frames, laid_out)
    layout = TokenLayout.of((segment for segment, _ in runs), markers_are_language)
    check_vocabulary(model.cfg, [token for _, ids in runs for token in ids])
    return torch.tensor([[token for _, ids in runs for token in ids]]), layout


def _check_question(model: Model, video: Any, question: str, options: Sequence[str], answer: str) -> None:
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
    if not isinstance(answer, str) or (answer and not answer.strip()):
        raise InputError(f"the answer is {answer!r}; give a text, or leave it out for a prompt alone")
    if isinstance(options, str) or any(not isinstance(o, str) or not o.strip() for o in options):
        raise InputError(f"options must be a list of texts, got {options!r}")
    if len(options) == 1 or len(options) > len(LETTERS):
        raise InputError(f"options must be 2 to {len(LETTERS)} texts, got {list(options)}")
    if video is not None and model.cfg.vision is None:
        raise InputError("this model takes no video; pass None")


def _checked_form(
    model: Model, question: str, options: Sequence[str], answer: str, form: QuestionForm | None
) -> QuestionForm:
    """`form`, or the template's own. Raises InputError for texts that the tokenizer would not read as text."""
    around = template(model.cfg.prompt)
    form = form or around.form
    check_texts(model.tokenizer, around, (question, *options, answer, form.subtitles or ""))
    return form


def _timing(
    instruction: TimeInstruction, clip: Any, sampler: str, bound: tuple[float | int, float | int] | None
) -> Timing | None:
    """When the sampled frames were taken, as LLaVA-Video's code reckons it: frame numbers over the average rate."""
    if not instruction.text:
        return None
    if not clip.fps:
        raise InputError(
            f"a time instruction needs the frame rate, and this source ({clip.source}) tells none; pass folder_fps=... "
            "with a folder, an array or a list of images, or time_instruction='none'"
        )
    if bound is not None:
        raise InputError(
            f"a time instruction tells the whole video's length, and bound={bound} takes a part of it, for which the "
            "original code has no rule; cut the file to that part, or pass time_instruction='none'"
        )
    rate = clip.fps
    # Where every round(fps)-th frame was taken, the original divides by the rounded rate: 0.00s,1.00s at 29.97 fps.
    # A single frame has no distance to the next, and below 0.5 fps the rounded rate is 0.
    steps = [b - a for a, b in pairwise(clip.indices)]
    if sampler == "one_fps" and steps and all(step == round(rate) for step in steps):
        rate = round(rate)
    return Timing(instruction, clip.n_total / clip.fps, tuple(i / rate for i in clip.indices))


def _pixels(clip: Any, cfg: Any) -> torch.Tensor | None:
    if clip is None:
        return None
    from hookedvid.video.transforms import preprocess

    return preprocess(clip.frames, cfg.vision)


def _laid_out(
    model: Model, question: str, options: Sequence[str], n_frames: int, timing: Timing | None, form: QuestionForm,
    answer: str,
) -> list[Run]:  # fmt: skip
    around = template(model.cfg.prompt)
    prompt = tokenized(model, pieces(around, question, options, n_frames, timing, form), n_frames)
    if not answer:
        return prompt
    whole = tokenized(model, pieces(around, question, options, n_frames, timing, form, answer), n_frames)
    *before, (segment, ids) = whole
    if before != prompt:
        raise InputError(
            f"this tokenizer joins the prompt's end and the answer {answer!r} into one token, so there is no place "
            "where the answer begins; begin it with another character"
        )
    if model.tokenizer.unk_token_id in ids:
        raise InputError(f"the answer {answer!r} holds words that this tokenizer does not know")
    ids = ids + end_token(model.tokenizer, around)
    return [*prompt, (replace(segment, stop=len(ids)), ids)]


def _check_length(model: Model, runs: Sequence[Run], n_frames: int, laid_out: Callable[[int], list[Run]]) -> None:
    """Raises InputError where the original code would have cut the prompt's end off."""
    longest = model.cfg.max_length
    length = _length(runs)
    if longest is None or length <= longest:
        return
    n_video = _length([r for r in runs if r[0].role in ("video", "newline")])
    merge = None if model.cfg.projector is None else model.cfg.projector.merge
    step = 1 if merge is None else merge.frames_per_clip
    # Frame numbers and times grow with the frames, so only tokenizing tells what fits.
    fitting = step * bisect.bisect_left(
        range(step, n_frames, step),
        True,
        key=lambda n: _length(laid_out(n)) > longest,
    )
    todo = f"take at most {fitting} frames (n_frames={fitting})" if fitting else "shorten the question"
    raise InputError(
        f"this prompt has {length} positions, {n_video} of them video, and max_length is {longest}; the original "
        f"code would silently cut its end off, the question with it; {todo}, or override max_length in the config"
    )


def _length(runs: Sequence[Run]) -> int:
    return sum(len(ids) for _, ids in runs)

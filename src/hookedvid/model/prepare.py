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
from hookedvid.families.prompts import QuestionForm, Template, TimeInstruction, Timing, pieces
from hookedvid.families.registry import named_instruction, template
from hookedvid.model.prompt_tokens import Run, check_texts, end_token, letter_tokens, tokenized, warn_of_unknown_words
from hookedvid.nn.model import Model
from hookedvid.values.config import VideoLLMConfig
from hookedvid.values.frame_size import frame_size
from hookedvid.values.grid import Grid, VideoShape
from hookedvid.values.inputs import VideoInputs, check_vocabulary
from hookedvid.values.layout import TokenLayout
from hookedvid.values.patch_rows import dropped
from hookedvid.values.selectors import ROLES_OF
from hookedvid.values.tensors import ints

Bound = tuple[float | int, float | int] | None
USUAL = 480, 854  # height and width of a frame where nobody opens the video


def prepare(
    model: Model,
    video: Any,
    question: str,
    options: Sequence[str] = (),
    *,
    answer: str = "",
    n_frames: int | None = None,
    sampler: str | None = None,
    bound: Bound = None,
    folder_fps: float | int | None = None,
    time_instruction: str | None = None,
    markers_are_language: bool = False,
    form: QuestionForm | None = None,
) -> VideoInputs:
    """A video and a question as this model reads them.

    Args:
        model: The model.
        video: A file, a folder of frames, an array or tensor uint8 [frame, height, width, 3], a list of PIL images;
            or a `Clip` that `read_clip` made of one with the same sampler, which knows its bound. None asks without a
            video.
        folder_fps: The frame rate of what is no file.
        options: Answers to choose from, lettered A, B, … by the template.
        answer: A text to go on with as if it had been generated, the template's end of an answer after it (role
            `generated`; `hookedvid.model.answers.answer_log_probs` scores it).
        n_frames, sampler, bound: How the video is sampled; the config's unless given. bound is (start, end) seconds
            of the part to sample from.
        time_instruction: A text that tells when the frames were taken, by its name in
            `hookedvid.families.registry`; the config's unless given, `none` for none.
        markers_are_language: Count the text between frames as language (it then belongs to the selector `text`).
        form: How question and options are put (`hookedvid.families.prompts.QuestionForm`); the template's unless
            given.

    Raises:
        InputError: Where the prompt is longer than the config's max_length, saying how many frames fit.
    """
    _check_question(model, video, question, options, answer)
    form = _checked_form(model, question, options, answer, form)
    cfg = model.cfg
    instruction = named_instruction(time_instruction or cfg.time_instruction)
    timing, shape, pixels, footage = None, None, None, None
    if video is not None:
        timing, shape, pixels, footage = _seen(cfg, video, n_frames, sampler, bound, folder_fps, instruction)

    def laid_out(shape: VideoShape | None) -> list[Run]:
        return _laid_out(model, question, options, shape, timing, form, answer)

    tokens, layout = _checked(model, shape, markers_are_language, laid_out)
    texts = (question, *options, answer, form.subtitles or "")
    warn_of_unknown_words(model.tokenizer, texts, ints(tokens[0]))
    letters = letter_tokens(model.tokenizer, len(options), form.prefill)
    check_vocabulary(cfg, letters)
    inputs = VideoInputs(tokens, (layout,), (pixels,), (tuple(options),), (letters,), footage=(footage,))
    return inputs.to(model.device)


def _seen(
    cfg: VideoLLMConfig, video: Any, n_frames: int | None, sampler: str | None, bound: Bound, folder_fps: Any,
    instruction: TimeInstruction,
) -> tuple[Timing | None, VideoShape, torch.Tensor, Any]:  # fmt: skip
    """When frames were taken, what became of them, their pixels, and how they are had again."""
    from hookedvid.video.footage import Footage
    from hookedvid.video.frames import Clip, read_clip
    from hookedvid.video.transforms import preprocess

    assert cfg.vision is not None
    rule, asked = sampler or cfg.sampler, cfg.n_frames if n_frames is None else n_frames
    known = isinstance(video, Clip)
    clip = video if known else read_clip(video, asked, rule, bound=bound, folder_fps=folder_fps)
    if known:
        _check_clip(clip, n_frames, bound, folder_fps)
    timing = _timing(instruction, clip, rule, template(cfg.prompt))
    pixels = preprocess(clip.frames, cfg.vision)
    n, height, width, _ = clip.frames.shape
    size, times = frame_size(cfg.vision, n, height, width), sampled_times(clip)
    gone, seconds = dropped(pixels, cfg.vision), _seconds(cfg, clip)
    footage = Footage.of(video, clip, asked, rule, folder_fps)
    return timing, VideoShape(n, *size, gone, seconds, (height, width), times), pixels, footage


def _check_clip(clip: Any, n_frames: int | None, bound: Bound, folder_fps: float | int | None) -> None:
    """Raise InputError where a clip was read in another way than is asked for now."""
    others = [("bound", bound, clip.bound), ("folder_fps", folder_fps, clip.fps)]
    if n_frames is not None and len(clip.frames) > n_frames:
        others.append(("n_frames", n_frames, len(clip.frames)))
    if wrong := [f"{name}={was}, not {asked}" for name, asked, was in others if asked is not None and asked != was]:
        raise InputError(f"the clip was read with {'; '.join(wrong)}: leave that out here, or read the clip so")


def sampled_times(clip: Any) -> tuple[float, ...]:
    """When a clip's frames were sampled, in seconds; by the rate where its frames have no times, else nothing."""
    if clip.times is not None:
        return clip.times
    return tuple(i / clip.fps for i in clip.indices) if clip.fps else ()


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
    Where frames keep their shape, theirs is that of `USUAL`.
    """
    _check_question(model, "expected", question, options, answer)
    form = _checked_form(model, question, options, answer, form)
    cfg, instruction = model.cfg, named_instruction(time_instruction)
    times = tuple(60.0 * i / n_frames for i in range(n_frames))
    timed = instruction.text or template(cfg.prompt).tells_times
    timing = Timing(instruction, 60.0, times) if timed else None
    assert cfg.vision is not None
    size, second = frame_size(cfg.vision, n_frames, *USUAL), 60.0 * cfg.patch_frames / n_frames
    shape = VideoShape(n_frames, *size, (), second, USUAL, times)

    def laid_out(shape: VideoShape | None) -> list[Run]:
        return _laid_out(model, question, options, shape, timing, form, answer)

    tokens, layout = _checked(model, shape, markers_are_language, laid_out)
    return VideoInputs(tokens, (layout,), (torch.empty(n_frames, 3, 0, 0),), (tuple(options),))


def _checked(
    model: Model,
    shape: VideoShape | None,
    markers_are_language: bool,
    laid_out: Callable[[VideoShape | None], list[Run]],
) -> tuple[torch.Tensor, TokenLayout]:
    """Ids [1, pos] and their layout; raises InputError for a prompt that is too long, or for ids without a row."""
    runs = laid_out(shape)
    _check_length(model, runs, shape, laid_out)
    grid = None if shape is None else Grid.of(model.cfg, shape)
    layout = TokenLayout.of((segment for segment, _ in runs), markers_are_language, grid)
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
    instruction: TimeInstruction,
    clip: Any,
    sampler: str,
    around: Template,
) -> Timing | None:
    """When the sampled frames were taken, as LLaVA-Video's code reckons it: frame numbers over the average rate."""
    if not (instruction.text or around.tells_times):
        return None
    if not clip.fps:
        what = "a time instruction needs" if instruction.text else "this model's prompt tells times and needs"
        raise InputError(
            f"{what} the frame rate, and this source ({clip.source}) tells none; pass folder_fps=... "
            "with a folder, an array or a list of images" + (", or time_instruction='none'" if instruction.text else "")
        )
    if not instruction.text:
        from hookedvid.video.samplers import told_times

        times = told_times(sampler, clip.indices, clip.n_total, clip.fps, clip.bound)
        return Timing(instruction, clip.n_total / clip.fps, tuple(times))
    if clip.bound is not None:
        raise InputError(
            f"a time instruction tells the whole video's length, and bound={clip.bound} takes a part of it, for which "
            "the original code has no rule; cut the file to that part, or pass time_instruction='none'"
        )
    rate = clip.fps
    # Where every round(fps)-th frame was taken, the original divides by the rounded rate: 0.00s,1.00s at 29.97 fps.
    # A single frame has no distance to the next, and below 0.5 fps the rounded rate is 0.
    steps = [b - a for a, b in pairwise(clip.indices)]
    if sampler == "one_fps" and steps and all(step == round(rate) for step in steps):
        rate = round(rate)
    return Timing(instruction, clip.n_total / clip.fps, tuple(i / rate for i in clip.indices))


def _seconds(cfg: VideoLLMConfig, clip: Any) -> float | None:
    """Seconds between steps where positions count them: frames of a step over the rate at which they were sampled."""
    if cfg.lm.rope.per_second is None:
        return None
    if not clip.fps:
        raise InputError(
            f"this model's positions count seconds, and this source ({clip.source}) tells no frame rate; pass "
            "folder_fps=... with a folder, an array or a list of images"
        )
    from hookedvid.video.samplers import within

    first, last = (0, clip.n_total - 1) if clip.bound is None else within(clip.bound, clip.n_total, clip.fps)
    sampled = len(clip.frames) / (last - first + 1) * clip.fps
    return cfg.patch_frames / sampled


def _laid_out(
    model: Model, question: str, options: Sequence[str], shape: VideoShape | None, timing: Timing | None,
    form: QuestionForm, answer: str,
) -> list[Run]:  # fmt: skip
    around, n_frames, each = template(model.cfg.prompt), 0 if shape is None else shape.n_frames, model.cfg.patch_frames

    def runs(answer: str) -> list[Run]:
        parts = pieces(around, question, options, n_frames, timing, form, answer, each)
        return tokenized(model, parts, shape)

    prompt = runs("")
    if not answer:
        return prompt
    whole = runs(answer)
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


def _check_length(
    model: Model,
    runs: Sequence[Run],
    shape: VideoShape | None,
    laid_out: Callable[[VideoShape | None], list[Run]],
) -> None:
    """Raises InputError where the original code would have cut the prompt's end off."""
    longest = model.cfg.max_length
    length = _length(runs)
    if longest is None or length <= longest:
        return
    n_video = _length([r for r in runs if r[0].role in ROLES_OF["video"]])
    merge = None if model.cfg.projector is None else model.cfg.projector.merge
    step = 1 if merge is None else merge.frames_per_clip

    def fits_not(n: int) -> bool:
        assert shape is not None
        return _length(laid_out(replace(shape, n_frames=n, dropped=()))) > longest

    # Frame numbers and times grow with the frames, so only tokenizing tells what fits.
    n_frames = 0 if shape is None else shape.n_frames
    fitting = step * bisect.bisect_left(range(step, n_frames, step), True, key=fits_not)
    todo = f"take at most {fitting} frames (n_frames={fitting})" if fitting else "shorten the question"
    raise InputError(
        f"this prompt has {length} positions, {n_video} of them video, and max_length is {longest}; the original "
        f"code would silently cut its end off, the question with it; {todo}, or override max_length in the config"
    )


def _length(runs: Sequence[Run]) -> int:
    return sum(len(ids) for _, ids in runs)

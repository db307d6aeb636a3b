"""What a prompt is made of: what text stands where around the video, and what role each part has.

Each family's own texts stand in its file. Which seconds a time instruction names is found in
`hookedvid.model.prepare`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from string import ascii_uppercase as LETTERS
from typing import TYPE_CHECKING, Any, NamedTuple

from hookedvid.errors import InputError

if TYPE_CHECKING:
    from hookedvid.values.selectors import Role

NO_SUBTITLES = "No subtitles available"  # as lmms-eval says it


class Piece(NamedTuple):
    """A stretch of prompt text with one role; `video` pieces stand for a frame, or the whole video (None)."""

    role: "Role"
    text: str = ""
    frame: int | None = None
    index: int | None = None  # pyright: ignore[reportIncompatibleMethodOverride]  # a tuple's own index is not used


@dataclass(frozen=True)
class QuestionForm:
    """How a question and its options are put.

    Attributes:
        system: Ahead of the video, behind the template's own system text.
        before: Between video and question; it says {subtitles} where those are wanted.
        question, option: {question}; {letter} and {option}, or {lettered}, which is both with `. ` between them unless
            the options come with their letters.
        instruction: After the options.
        prefill: How the answer begins, behind the assistant's header.
        subtitles: Their text, None until known.
    """

    question: str = "{question}"
    option: str = "\n{letter}. {option}"
    instruction: str = "\nAnswer with the option's letter from the given choices directly."
    system: str = ""
    before: str = ""
    prefill: str = ""
    subtitles: str | None = None

    @property
    def wants_subtitles(self) -> bool:
        """Whether the prompt holds the video's subtitles."""
        return "{subtitles}" in self.before


@dataclass(frozen=True)
class Template:
    """Texts around a video and a question.

    Attributes:
        before: System prompt and user header.
        video_before, video_after: Around the whole video; {n} counts its frames, {spelled} in words, {length} is how
            long it is, H:MM:SS.
        frame_before, frame_after: Around every step of the video, a frame or the frames that share their tokens; {n}
            counts from 1, {time} is its seconds, {clock} those as MM:SS. Without them the video is one run.
        frame_join: Between steps.
        between: After the video.
        form: Of the question, unless another is asked for.
        after: The assistant's header.
        answer: Form of what follows it.
        stops: Tokens that end an answer.
        commands: Requests that stand as they are, without the form of a question.
    """

    before: str
    between: str = "\n"
    video_before: str = ""
    video_after: str = ""
    frame_before: str = ""
    frame_after: str = ""
    frame_join: str = ""
    form: QuestionForm = QuestionForm()
    after: str = ""
    answer: str = "{answer}"
    stops: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()

    @property
    def tells_times(self) -> bool:
        """Whether the texts around the video say when its frames were taken."""
        return any(k in self.video_before + self.frame_before for k in ("{time", "{clock}", "{length}"))


@dataclass(frozen=True)
class TimeInstruction:
    """A text that tells the model when its frames were taken.

    Attributes:
        text: {duration} is the length of the video and {times} where its frames are, in seconds; {n} counts them.
        before_video: It stands before the first frame, else between video and question.
        keeps_between: Whether what the template puts after the video stays in front of it.
    """

    text: str = ""
    before_video: bool = False
    keeps_between: bool = True


class Timing(NamedTuple):
    """A time instruction and what it has to say: the video's length and its frames' times, in seconds."""

    instruction: TimeInstruction
    duration: float
    times: tuple[float, ...]

    def step(self, n_frames: int, frames: range) -> dict[str, Any]:
        """What a template may say of a step of the last `n_frames` frames: the mean of its first and last time."""
        times = self.times[-n_frames:]
        time = (times[frames.start] + times[frames.stop - 1]) / 2
        return {"time": time, "clock": f"{int(time) // 60:02d}:{int(time) % 60:02d}"}

    def said(self, n_frames: int) -> str:
        """The text about the last `n_frames` frames, whose times are the longest to write."""
        seconds = ",".join(f"{t:.2f}s" for t in self.times[-n_frames:])
        return self.instruction.text.format(duration=self.duration, n=n_frames, times=seconds)


# Of no family: what a bare decoder reads, and what the shipped model was trained on.
TEMPLATES: dict[str, Template] = {
    "plain": Template(before="Video: ", after="\nAnswer:", answer=" {answer}"),
    # Words are single tokens; scripts/train_tiny.py trains on exactly this form.
    "tiny": Template(
        before="<bos> video",
        between="",
        form=QuestionForm(question=" question {question}", option=" {letter} {option}", instruction=" answer"),
        answer=" {answer}",
        stops=("<eos>",),
        commands=("describe",),
    ),
}
NO_INSTRUCTION = TimeInstruction()


def lettered(options: Sequence[str]) -> tuple[str, ...]:
    """Options with their letters in front, `A. Apples`; left as they are where all of them come lettered."""
    if all(o.startswith(f"{letter}.") for letter, o in zip(LETTERS, options, strict=False)):
        return tuple(options)
    return tuple(f"{letter}. {o}" for letter, o in zip(LETTERS, options, strict=False))


def special_strings(form: Template) -> tuple[str, ...]:
    """What a template writes as one token each, `<|im_start|>`, `<img>` or `</s>`, in order of appearance.

    A tokenizer that splits any of them is not the model's.
    """
    texts = (getattr(form, f.name) for f in fields(form) if f.name != "form")
    found = (m for t in texts for m in re.findall(r"<\|\w+\|>|</?[\w-]+>", t if isinstance(t, str) else "".join(t)))
    return tuple(dict.fromkeys(found))


def pieces(
    around: Template,
    question: str,
    options: Sequence[str],
    n_frames: int,
    timing: Timing | None = None,
    form: QuestionForm | None = None,
    answer: str = "",
    patch_frames: int = 1,
) -> list[Piece]:
    """The prompt in order, and an answer to it; without frames the video and what surrounds it are left out.

    `patch_frames` is how many frames share their tokens.

    Raises:
        InputError: For a form that wants subtitles and has none, or that begins the answer where one is given.
    """
    form = form or around.form
    if form.wants_subtitles and form.subtitles is None:
        raise InputError('this form of prompt holds subtitles: give them, replace(form, subtitles="…"), "" for none')
    if answer and form.prefill:
        raise InputError(
            f"this form of prompt begins the answer itself, with {form.prefill!r}, and {answer!r} is given to follow "
            'the header: give it with replace(form, prefill="")'
        )
    parts = [Piece("system", around.before), Piece("system", form.system)]
    if n_frames:
        parts += _video_pieces(around, n_frames, timing, patch_frames)
    parts.append(Piece("template", form.before.format(subtitles=form.subtitles or NO_SUBTITLES)))
    asked = " {question}" if question in around.commands else form.question
    parts.append(Piece("question", asked.format(question=question)))
    for i, (option, line) in enumerate(zip(options, lettered(options), strict=True)):
        said = form.option.format(letter=LETTERS[i], option=option, lettered=line)
        parts.append(Piece("options", said, index=i))
    if options:
        parts.append(Piece("template", form.instruction))
    parts += [Piece("template", around.after), Piece("template", form.prefill)]
    if answer:
        parts.append(Piece("generated", around.answer.format(answer=answer)))
    return [p for p in parts if p.text or p.role == "video"]


def _video_pieces(form: Template, n_frames: int, timing: Timing | None, patch_frames: int) -> list[Piece]:
    instruction = timing.instruction if timing else NO_INSTRUCTION
    time = timing.said(n_frames) if timing and instruction.text else ""
    parts = [Piece("system", time)] if instruction.before_video else []
    parts.append(Piece("marker", form.video_before and form.video_before.format(**_of_video(n_frames, timing))))
    steps = [range(f, min(f + patch_frames, n_frames)) for f in range(0, n_frames, patch_frames)]
    if not form.frame_before:
        steps = []
        parts.append(Piece("video"))
    for i, frames in enumerate(steps):
        said = {"n": i + 1, **(timing.step(n_frames, frames) if timing else {})}
        last = frames is steps[-1]
        parts.append(Piece("marker", form.frame_before.format(**said), frame=frames.start))
        parts.append(Piece("video", frame=frames.start))
        parts.append(Piece("marker", form.frame_after + ("" if last else form.frame_join), frame=frames.start))
    parts.append(Piece("marker", form.video_after))
    if instruction.keeps_between:
        parts.append(Piece("template", form.between))
    if not instruction.before_video:
        parts.append(Piece("template", time))
    return parts


def _of_video(n_frames: int, timing: Timing | None) -> dict[str, Any]:
    seconds = int(timing.duration) if timing else 0
    length = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return {"n": n_frames, "spelled": _spelled(n_frames), "length": length}


def _spelled(n: int) -> str:
    from num2words import num2words  # pyright: ignore[reportMissingTypeStubs]

    return num2words(n)

"""The prompt of each family: what text stands where around the video, and what role each part has.

Which seconds a time instruction names is found in `hookedvid.model.prepare`; only its words are here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from string import ascii_uppercase as LETTERS
from typing import NamedTuple

from hookedvid.errors import InputError, nearest
from hookedvid.values.layout import Role

NO_SUBTITLES = "No subtitles available"  # as lmms-eval says it


class Piece(NamedTuple):
    """A stretch of prompt text with one role; `video` pieces stand for a frame, or the whole video (None)."""

    role: Role
    text: str = ""
    frame: int | None = None
    index: int | None = None


@dataclass(frozen=True)
class QuestionForm:
    """How a question and its options are put.

    system: ahead of the video, behind the template's own system text. before: between video and question; it says
    {subtitles} where those are wanted. question, option: {question}; {letter} and {option}, or {lettered}, which
    is both with `. ` between them unless the options come with their letters. instruction: after the options.
    prefill: how the answer begins, behind the assistant's header. subtitles: their text, None until known.
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

    before: system prompt and user header. frame_before, frame_after: around every frame ({n} counts from 1);
    without them the video is one run. between: after the video. form: of the question, unless another is asked
    for. after: the assistant's header; answer: form of what follows it. stops: tokens that end an answer.
    commands: requests that stand as they are, without the form of a question.
    """

    before: str
    between: str = "\n"
    frame_before: str = ""
    frame_after: str = ""
    form: QuestionForm = QuestionForm()
    after: str = ""
    answer: str = "{answer}"
    stops: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class TimeInstruction:
    """A text that tells the model when its frames were taken.

    text: {duration} is the length of the video and {times} where its frames are, in seconds; {n} counts them.
    before_video: it stands before the first frame, else between video and question. keeps_between: whether
    what the template puts after the video stays in front of it.
    """

    text: str = ""
    before_video: bool = False
    keeps_between: bool = True


class Timing(NamedTuple):
    """A time instruction and what it has to say: the video's length and its frames' times, in seconds."""

    instruction: TimeInstruction
    duration: float
    times: tuple[float, ...]

    def said(self, n_frames: int) -> str:
        """The text about the last `n_frames` frames, whose times are the longest to write."""
        seconds = ",".join(f"{t:.2f}s" for t in self.times[-n_frames:])
        return self.instruction.text.format(duration=self.duration, n=n_frames, times=seconds)


# LLaVA-NeXT's train.py and README, lmms-eval's llava_vid.py. There is no space before "Please".
_LLAVA_VIDEO = (
    "The video lasts for {duration:.2f} seconds, and {n} frames are uniformly sampled from it. "
    "These frames are located at {times}.Please answer the following questions related to this video.\n"
)
TIME_INSTRUCTIONS: dict[str, TimeInstruction] = {
    "none": TimeInstruction(),
    # <image>\n{time}\n{question}, as in training and lmms-eval.
    "llava_video": TimeInstruction(_LLAVA_VIDEO),
    # <image>{time}\n{question}, as in the README.
    "llava_video_demo": TimeInstruction(_LLAVA_VIDEO, keeps_between=False),
    # VideoChat-Flash's xtuner-train_internvideo2_5/unify_internvl2_train_r16.py; the model card's demo has none.
    "internvideo2_5": TimeInstruction(
        "The video lasts for {duration:.2f} seconds, and {n} frames are uniformly sampled from it.\n",
        before_video=True,
    ),
}

_INTERN_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
_INTERNLM2_SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
# Exact strings of the original packages, under their names for them: qwen_1_5 and vicuna_v1 of llava's
# conversation.py, internvl2_5 and internlm2-chat of internvl's, which a checkpoint's config.json names too.
TEMPLATES: dict[str, Template] = {
    "qwen_1_5": Template(
        before="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        after="<|im_end|>\n<|im_start|>assistant\n",
        stops=("<|im_end|>",),
    ),
    "vicuna_v1": Template(
        before="A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions. USER: ",
        after=" ASSISTANT:",
        answer=" {answer}",
        stops=("</s>",),
    ),
    "internvl2_5": Template(
        before=f"<|im_start|>system\n{_INTERN_SYSTEM}<|im_end|>\n<|im_start|>user\n",
        frame_before="Frame{n}: <img>",
        frame_after="</img>\n",
        between="",
        after="<|im_end|>\n<|im_start|>assistant\n",
        stops=("<|im_end|>",),
    ),
    # What the separator puts after <|im_end|> is the other difference to internvl2_5: nothing.
    "internlm2-chat": Template(
        before=f"<|im_start|>system\n{_INTERNLM2_SYSTEM}<|im_end|><|im_start|>user\n",
        frame_before="Frame{n}: <img>",
        frame_after="</img>\n",
        between="",
        after="<|im_end|><|im_start|>assistant\n",
        stops=("<|im_end|>",),
    ),
    # The chat templates that llava-hf ships, for its -hf checkpoints; neither says anything as `system`.
    # chat_template.json of llava-onevision-qwen2-*-hf: 826 bytes, those of the template that transformers' tests of
    # the processor quote. The first revisions (824 bytes) had "user\n" and "<|im_end|>\n".
    "onevision_hf": Template(
        before="<|im_start|>user ",
        after="<|im_end|><|im_start|>assistant\n",
        stops=("<|im_end|>",),
    ),
    # processor_config.json of LLaVA-NeXT-Video-7B-hf at 3378b61; transformers' docs write the same by hand.
    "next_video_hf": Template(before="USER: ", after=" ASSISTANT:", answer=" {answer}", stops=("</s>",)),
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


def template(name: str) -> Template:
    """The template of a name. Raises InputError listing those that exist."""
    if name not in TEMPLATES:
        raise InputError(f"no prompt template {name!r} ({nearest(name, TEMPLATES)})")
    return TEMPLATES[name]


def named_instruction(name: str) -> TimeInstruction:
    """The time instruction of a name. Raises InputError listing those that exist."""
    if name not in TIME_INSTRUCTIONS:
        raise InputError(f"no time instruction {name!r} ({nearest(name, TIME_INSTRUCTIONS)})")
    return TIME_INSTRUCTIONS[name]


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
    found = (m for t in texts for m in re.findall(r"<\|\w+\|>|</?\w+>", t if isinstance(t, str) else "".join(t)))
    return tuple(dict.fromkeys(found))


def pieces(
    around: Template,
    question: str,
    options: Sequence[str],
    n_frames: int,
    timing: Timing | None = None,
    form: QuestionForm | None = None,
    answer: str = "",
) -> list[Piece]:
    """The prompt in order, and an answer to it; without frames the video and what surrounds it are left out.

    Raises InputError for a form that wants subtitles and has none, or that begins the answer where one is given.
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
        parts += _video_pieces(around, n_frames, timing)
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


def _video_pieces(form: Template, n_frames: int, timing: Timing | None) -> list[Piece]:
    instruction = timing.instruction if timing else TIME_INSTRUCTIONS["none"]
    time = timing.said(n_frames) if timing else ""
    parts = [Piece("system", time)] if instruction.before_video else []
    if form.frame_before:
        for f in range(n_frames):
            parts.append(Piece("marker", form.frame_before.format(n=f + 1), frame=f))
            parts.append(Piece("video", frame=f))
            parts.append(Piece("marker", form.frame_after, frame=f))
    else:
        parts.append(Piece("video"))
    if instruction.keeps_between:
        parts.append(Piece("template", form.between))
    if not instruction.before_video:
        parts.append(Piece("template", time))
    return parts

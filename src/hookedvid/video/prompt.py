"""The prompt of each family: what text stands where around the video, and what role each part has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hookedvid.answering import LETTERS
from hookedvid.errors import InputError, nearest
from hookedvid.layout import Role


class Piece(NamedTuple):
    """A stretch of prompt text with one role; `video` pieces stand for a frame, or the whole video (None)."""

    role: Role
    text: str = ""
    frame: int | None = None
    index: int | None = None


@dataclass(frozen=True)
class Template:
    """Texts around a video and a question.

    before: system prompt and user header. frame_before, frame_after: around every frame ({n} counts from 1);
    without them the video is one run. between: after the video. question, option, instruction: forms of
    each; after: the assistant's header. stops: tokens that end an answer.
    """

    before: str
    between: str = "\n"
    frame_before: str = ""
    frame_after: str = ""
    question: str = "{question}"
    option: str = "\n{letter}. {option}"
    instruction: str = "\nAnswer with the option's letter from the given choices directly."
    after: str = ""
    stops: tuple[str, ...] = ()


_INTERN_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
# Exact strings of the original packages (conversation templates qwen_1_5, vicuna_v1, internvl2_5).
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
    "plain": Template(before="Video: ", after="\nAnswer:"),
    # Words are single tokens; scripts/train_tiny.py trains on exactly this form.
    "tiny": Template(
        before="<bos> video",
        between="",
        question=" question {question}",
        option=" {letter} {option}",
        instruction=" answer",
        stops=("<eos>",),
    ),
}


def template(name: str) -> Template:
    """The template of a name. Raises InputError listing those that exist."""
    if name not in TEMPLATES:
        raise InputError(f"no prompt template {name!r} ({nearest(name, TEMPLATES)})")
    return TEMPLATES[name]


def pieces(form: Template, question: str, options: Sequence[str], n_frames: int) -> list[Piece]:
    """The prompt in order; without frames the video and what surrounds it are left out."""
    parts = [Piece("system", form.before)]
    if n_frames and form.frame_before:
        for f in range(n_frames):
            parts.append(Piece("marker", form.frame_before.format(n=f + 1), frame=f))
            parts.append(Piece("video", frame=f))
            parts.append(Piece("marker", form.frame_after, frame=f))
    elif n_frames:
        parts.append(Piece("video"))
    if n_frames:
        parts.append(Piece("template", form.between))
    parts.append(Piece("question", form.question.format(question=question)))
    for i, option in enumerate(options):
        parts.append(Piece("options", form.option.format(letter=LETTERS[i], option=option), index=i))
    if options:
        parts.append(Piece("template", form.instruction))
    parts.append(Piece("template", form.after))
    return [p for p in parts if p.text or p.role == "video"]

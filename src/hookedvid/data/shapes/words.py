"""The language of the shapes videos: its words, its prompt and the tokenizer that splits it.

Everything here is text. The order of `VOCABULARY` is part of the shipped weights: append, never reorder.
"""

import string
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

COLORS = ("red", "green", "blue", "yellow", "purple", "cyan", "orange", "white")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
DIRECTIONS = ("left", "right", "up", "down")
PLACES = ("top-left", "top-right", "bottom-left", "bottom-right")
NUMBERS = ("one", "two", "three", "four")
LETTERS = ("A", "B", "C", "D")

SPECIALS = ("<pad>", "<unk>", "<bos>", "<eos>", "<video>")
_FRAME = ("video", "question", "answer", "describe", "choose")
_GRAMMAR = (
    "? , what which where how is are was the a of many there does object objects color shape way "
    "first last before after comes opposite appears move start end become changes vanishes then still"
)
_THINGS = (
    "grass sky banana snow blood carrot plum leaf milk sun wheel donut kite pyramid plus box lemon tomato "
    "sea coin window"
)
VOCABULARY: tuple[str, ...] = (
    *SPECIALS,
    *LETTERS,
    *_FRAME,
    *COLORS,
    *SHAPES,
    *DIRECTIONS,
    *PLACES,
    *NUMBERS,
    *_GRAMMAR.split(),
    *_THINGS.split(),
)
TOKEN: dict[str, int] = {word: index for index, word in enumerate(VOCABULARY)}

# What the model reads: PREFIX, the video's tokens, then a question or the request to describe it.
PREFIX = "<bos> video"
DESCRIBE = "describe"


def tokenizer() -> "PreTrainedTokenizerFast":
    """The word-level tokenizer of the vocabulary; a word it lacks is `<unk>`.

    "What color is the circle?" is read as "what color is the circle ?": a capital before a small letter
    counts as small (the letters A to D stand alone), `?` and `,` as words of their own. Nothing is added.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(TOKEN, unk_token="<unk>"))
    words.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(rf"\b{c}(?=[a-z])"), c.lower()) for c in string.ascii_uppercase]
    )
    # Not `Whitespace` or `Punctuation`, which would also split "top-left".
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[?,]"), "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens=["<video>"],
        # "?" is a word here; cleaning up would glue it to the one before it.
        clean_up_tokenization_spaces=False,
    )

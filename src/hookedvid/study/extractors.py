"""Rules that read an option out of generated text: ours, and those of the field's evaluators, by name and date.

Rules disagree on the same text ("Answer: D" is D or A), so a score says little without the name of its rule.
Each is restated here as it behaves, oddities included; none ever names an option that does not exist.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase as LETTERS

from hookedvid.errors import InputError, nearest
from hookedvid.families.prompts import lettered

Options = Sequence[str]


@dataclass(frozen=True)
class Extractor:
    """A rule, by its name.

    read: (text, options) -> 0-based option, None where the rule finds none. check: how an evaluator that never
    extracts holds the text against the right option: (text, 0-based right option) -> whether it passes.
    """

    name: str
    read: Callable[[str, Options], int | None]
    check: Callable[[str, int], bool] | None = None


def extractor(name: str) -> Extractor:
    """The extractor of a name. Raises InputError listing those that exist."""
    if name not in EXTRACTORS:
        raise InputError(f"no extractor {name!r} ({nearest(name, EXTRACTORS)})")
    return EXTRACTORS[name]


def _index(letter: str, n: int) -> int | None:
    at = LETTERS.find(letter) if letter else -1
    return at if 0 <= at < n else None


# ---- ours ------------------------------------------------------------------------------------------------------

_LEADING = re.compile(r"\s*\(?([A-Z])(?![A-Za-z])")


def leading_letter(text: str, options: Options) -> int | None:
    """The option a text begins with, as `B`, `B.`, `(B)`; nothing else counts."""
    match = _LEADING.match(text)
    return _index(match[1], len(options)) if match else None


# ---- Video-MME -------------------------------------------------------------------------------------------------

_FOUR = "ABCD"
_PHRASES = (
    *("the answer is", "answer is", "the correct answer is", "correct answer is", "the best answer is"),
    *("best answer is", "the correct option is", "correct option is", "the best option is", "best option is"),
    *("the choice is", "choice is", "the correct choice is", "correct choice is", "i choose", "i select", "i pick"),
    *("my answer is", "my choice is", "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)


def videomme_2026_04(text: str, options: Options) -> int | None:
    """Candidates of several forms, ranked by form and then by how late they stand; capitals alone count."""
    if not text.strip():
        return None
    text = text.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    text = f" {text} "
    found = _by_form(text) + _by_phrase(text) + _at_the_ends(text)
    if not found:
        found = [(0, text.rfind(x), x) for x in _FOUR if x in text]
    best = max(found, key=lambda c: c[:2], default=(0, 0, ""))  # max keeps the first of equals
    return _index(best[2], len(options))


Candidate = tuple[int, int, str]  # priority, position, letter


def _by_form(text: str) -> list[Candidate]:
    forms = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))
    written = [(form.format(x), priority, x) for form, priority in forms for x in _FOUR]
    return [(priority, text.rfind(w), x) for w, priority, x in written if w in text]


def _by_phrase(text: str) -> list[Candidate]:
    found = []
    lower = text.lower()
    for phrase in _PHRASES:
        at = lower.find(phrase)
        if at >= 0:
            after = at + len(phrase)
            found += [(7, text.find(x, after), x) for x in _FOUR if text.find(x, after) >= 0]
    return found


def _at_the_ends(text: str) -> list[Candidate]:
    bare = text.strip()
    if not bare:
        return []
    found = []
    if bare[0] in _FOUR and not bare[1:2].isalpha():
        found.append((10, 0, bare[0]))
    if bare[-1] in _FOUR and not bare[-2:-1].isalpha():
        found.append((9, len(bare) - 1, bare[-1]))
    return found


_PREFIXES = ("The best answer is", "The correct answer is", "The answer is", "The answer")


def _first_capital(text: str, options: Options, prefixes: Sequence[str]) -> int | None:
    text = text.strip()
    for prefix in prefixes:
        text = text.replace(prefix, "")
    match = re.search("[ABCD]", text)
    return _index(match[0], len(options)) if match else None


def videomme_2024_06(text: str, options: Options) -> int | None:
    """The first capital A to D anywhere, once a few phrases are deleted: the official rule too.

    The originals list more phrases, run together by missing commas: what that deletes, nobody says.
    """
    return _first_capital(text, options, _PREFIXES)


def videomme_vlmevalkit(text: str, options: Options) -> int | None:
    """VLMEvalKit's first stage, before it asks a judge: as `videomme_2024_06`, with two more phrases deleted."""
    return _first_capital(text, options, (*_PREFIXES, "Answer:", "Option:"))


# ---- MVBench ---------------------------------------------------------------------------------------------------

_DOTTED = re.compile(r"([A-E])\.\s*(.+)$", re.IGNORECASE)
_STANDING = re.compile(r"\b([A-E])\b", re.IGNORECASE)
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_MOST_STOPS = 32  # the original passes a flag where the count of replacements stands


def mvbench_lmms_eval(text: str, options: Options) -> int | None:
    """`B. …`, else the first letter a to e that stands alone: the article of "A person is cooking" too."""
    match = _DOTTED.match(text.strip())
    if match is None:
        text = text.replace("\n", " ").replace("\t", " ").strip()
        text = _without_marks(text).strip("'").strip('"').strip("(").strip(")").strip()
        match = _STANDING.search(text.lower())
    return _index(match[1].upper(), len(options)) if match else None


def _without_marks(text: str) -> str:
    said = text
    glued = re.search(r"\d,\d", said) is not None
    for mark in _MARKS:
        touches_blank = f"{mark} " in said or f" {mark}" in said
        text = text.replace(mark, "" if touches_blank or glued else " ")
    return re.sub(r"\.(?!\d)", "", text, count=_MOST_STOPS)


def mvbench_check(text: str, answer: int) -> bool:
    """Whether a text passes for the right option in the original's check, which VLMEvalKit took over.

    Its first word, lower-cased, must be part of `(x)`, or hold `(x)`. Nothing at all, `(` and `)` are part of
    every `(x)` and so pass for every question.
    """
    first = text.lower().split(" ")[0]
    right = f"({LETTERS[answer].lower()})"
    return first.replace(".", "") in right or right in first


def mvbench_checked(text: str, options: Options) -> int | None:
    """The one option for which a text passes the check; None where it passes for several, or for none."""
    passed = [i for i in range(len(options)) if mvbench_check(text, i)]
    return passed[0] if len(passed) == 1 else None


# ---- EgoSchema -------------------------------------------------------------------------------------------------


def egoschema_lmms_eval(text: str, options: Options) -> int | None:
    """Capitals in `(X)`, `X ` or `X.`, else an option's whole text; of several the one whose last place is first.

    Where this finds nothing, the original guesses; what is made of it is the convention's to say.
    """
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    letters = LETTERS[: len(options)]
    written = [(form.format(x), i) for form in ("({})", "{} ", "{}.") for i, x in enumerate(letters)]
    if found := [(text.rfind(w), i) for w, i in written if w in text]:
        return min(found)[1]
    if len(text.split()) <= 5:
        return None
    said = text.lower()
    spoken = [(said.rfind(o.lower()), i) for i, o in enumerate(lettered(options)) if o.lower() in said]
    return min(spoken)[1] if spoken else None


_ALL = (
    Extractor("leading-letter@1", leading_letter),
    Extractor("videomme/lmms-eval@2026-04", videomme_2026_04),
    Extractor("videomme/lmms-eval@2024-06", videomme_2024_06),
    Extractor("videomme/vlmevalkit", videomme_vlmevalkit),
    Extractor("mvbench/lmms-eval", mvbench_lmms_eval),
    Extractor("mvbench/official", mvbench_checked, mvbench_check),
    Extractor("egoschema/lmms-eval", egoschema_lmms_eval),
)
EXTRACTORS: dict[str, Extractor] = {e.name: e for e in _ALL}
OURS = "leading-letter@1"

"""Extractors: the golden table of the evaluators' own functions, each oddity by itself, and any text at all."""

from string import ascii_uppercase as LETTERS

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hookedvid.data.mvbench import official_check
from hookedvid.errors import InputError
from hookedvid.study.extractors import EXTRACTORS, extractor
from hookedvid.study.scorings.generate import is_degenerate

COLUMNS = ("videomme/lmms-eval@2026-04", "videomme/lmms-eval@2024-06", "mvbench/lmms-eval", "egoschema/lmms-eval")
OPTIONS = ("red", "gray", "blue", "green", "black")
NOTHING = ("", "", "", "")

# What the evaluators' own functions read, in the order of COLUMNS; "" is nothing: wrong, or a guess in EgoSchema.
GOLDEN = [
    ("A", "AAAA"),
    ("A.", "AAAA"),
    ("(A)", "AAAA"),
    ("B. Gray.", "BBBB"),
    ("A) cooking", ("A", "A", "A", "")),
    ("b", ("", "", "B", "")),
    ("(b)", ("", "", "B", "")),
    ("Answer: D", "DADD"),
    ("The best answer is: C", "CCCC"),
    ("Based on the video, the answer is D", "DBDD"),
    ("I think it is B because A is wrong", "ABBB"),
    ("Actually D", "DADD"),
    ("A person is cooking", "AAAA"),
    ("The man is Dancing", ("D", "D", "", "")),
    ("C\n\nExplanation: A is wrong", "CCCA"),
    ("B or C.", "BBBB"),
    ("A and B", "AAAA"),
    ("**C**", ("C", "C", "C", "")),
    (r"\boxed{D}", ("D", "D", "D", "")),
    ("None of them", NOTHING),
    ("!!!!!!!!", NOTHING),
    ("", NOTHING),
    ("Video /data/AbC.mp4 can not load, check the source", ("C", "A", "", "C")),
]


def said(name: str, text: str, options: tuple[str, ...] = OPTIONS) -> str:
    index = extractor(name).read(text, options if "videomme" not in name else options[:4])
    return "" if index is None else LETTERS[index]


@pytest.mark.parametrize(("name", "at"), [(name, i) for i, name in enumerate(COLUMNS)])
@pytest.mark.parametrize(("text", "letters"), GOLDEN)
def test_every_cell_of_the_golden_table(text, letters, name, at):
    assert said(name, text) == letters[at]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(A) and then B.", "B"),  # a letter at an end is above parentheses, these above a full stop
        ("see (A) and then B. so", "A"),
        ("B. and C: and D) too", "B"),
        ("(A) no (B) no (A) yes", "A"),  # the last (A) is behind the only (B)
        ("the answer is uncertain, maybe Bob or Carl", "C"),  # inside words, the latest of each one's first
        ("I CHOOSE option B", "B"),
        ("정답은 C 입니다", "C"),
        ("답: D 번", "D"),
        ("옵션 B 인 것", "B"),
        ("答案是B，因为 A 错", "A"),  # both behind the phrase, the later one wins
        ("我选C吧", "C"),
        ("答えはDです", "D"),
        ("NASA went up", "A"),  # "A " at the end of a word
        ("xAxBx", "B"),
        ("'\"A\"'", "A"),
        ("   ", ""),
        ("E", ""),
        ("\n", ""),
    ],
)
def test_video_mme_of_2026_ranks_forms_then_places(text, letter):
    assert said("videomme/lmms-eval@2026-04", text) == letter


@pytest.mark.parametrize(
    ("text", "older", "toolkit"),
    [
        ("The best answer is D", "D", "D"),
        ("The answer: D", "D", "D"),
        ("Answer: D", "A", "D"),  # only VLMEvalKit deletes "Answer:"
        ("Option: B", "B", "B"),
        ("The correct option is B", "B", "B"),  # not deleted, but without a capital of its own beside T
        ("Best option: C", "B", "B"),  # nor is this: its own B comes first
        ("no capital in these more than ten words of one whole answer here", "", ""),
    ],
)
def test_video_mme_of_2024_and_vlmevalkit_take_the_first_capital(text, older, toolkit):
    assert said("videomme/lmms-eval@2024-06", text) == older
    assert said("videomme/vlmevalkit", text) == toolkit


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("e. black", "E"),
        ("d.green", "D"),
        ("A.\nred", "A"),
        ("A.", "A"),
        ("it's c", "C"),
        ("red,blue", ""),
        ("x,b", "B"),  # a comma within becomes a blank, and leaves b alone
        ("x, yb c", "C"),
        ("1,2 x;b", ""),  # but between digits it makes every mark vanish
        ("y" + "." * 40 + "b", "B"),  # only 32 full stops go
        ("y" + "." * 32 + "b", ""),
    ],
)
def test_mvbench_takes_the_first_letter_that_stands_alone(text, letter):
    assert said("mvbench/lmms-eval", text) == letter


def test_mvbench_names_no_option_beyond_those_there_are():
    assert extractor("mvbench/lmms-eval").read("E. black", OPTIONS[:4]) is None
    assert extractor("mvbench/official").read("(e)", OPTIONS[:4]) is None


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("", "ABCDE"),  # nothing at all is right, whatever was asked
        ("(", "ABCDE"),
        (")", "ABCDE"),
        (" B", "ABCDE"),  # the first word of it is empty
        ("...", "ABCDE"),
        ("B", "B"),
        ("b)", "B"),
        ("(B) gray", "B"),
        ("B. gray", "B"),
        ("x(b)y", "B"),
        ("x(b.)y", ""),
        ("b)\ngray", ""),  # a line end does not end the word
        ("Best option", ""),
    ],
)
def test_the_check_of_mvbench_passes_what_says_nothing_and_we_read_none_of_that(text, passes):
    assert "".join(LETTERS[i] for i in range(5) if official_check(text, i)) == passes
    assert said("mvbench/official", text) == (passes if len(passes) == 1 else "")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(C) not (B) but (A), (C)", "B"),  # whose last place is first
        ("XB. and A is", "B"),
        ("C is cooking", "C"),  # the camera wearer
        ("in the end it was just E. black to me", "E"),
        ("one two three four five a. red", "A"),  # in words, whole lettered option, any case
        ("a. red", ""),  # but not among five words or fewer
        ("one two three four b. GRAY a. red", "B"),
    ],
)
def test_egoschema_takes_the_letter_whose_last_place_is_first(text, letter):
    assert said("egoschema/lmms-eval", text) == letter


def test_egoschema_finds_options_that_come_with_their_letters():
    lettered = tuple(f"{letter}. {o}" for letter, o in zip(LETTERS, OPTIONS, strict=False))
    for text in ("one two three four five a. red", "A) cooking"):
        assert said("egoschema/lmms-eval", text, lettered) == said("egoschema/lmms-eval", text)


PIECES = st.sampled_from([*"ABCDEFabcde .,:;()!?'\"\n\t{}*", "the answer is ", "答案是", "İ", "ẞ", "(", ". ", "1,2"])


@settings(max_examples=400, deadline=None)
@given(text=st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=20).map("".join)), n=st.integers(2, 6))
def test_no_text_crashes_an_extractor_or_names_an_option_that_does_not_exist(text, n):
    options = tuple(f"option {i}" for i in range(n))
    for rule in EXTRACTORS.values():
        index = rule.read(text, options)
        assert index is None or 0 <= index < n
        assert rule.check is None or rule.check(text, n - 1) in (True, False)
    is_degenerate(text)


def test_unknown_extractors_are_refused_with_those_that_exist():
    with pytest.raises(InputError, match=r"no extractor 'videomme/lmms-eval' \(nearest: 'videomme/lmms-eval@20"):
        extractor("videomme/lmms-eval")


@pytest.mark.parametrize(
    ("text", "garbled"),
    [
        ("!!!!!!!!", True),
        ("the the the the the", True),
        ("The cat!!!!!!!!!!!!!!", True),
        ("AAAAAAAA", True),  # which parses
        ("!!!!", False),
        ("No, no, no", False),
        ("The man walks to the door and opens it!!!!!!!!", False),  # less than half of it
        ("", False),
    ],
)
def test_one_thing_said_over_and_over_is_degenerate(text, garbled):
    assert is_degenerate(text) is garbled

"""Interventions as lines of text."""

import pytest
import torch
from safetensors.torch import save_file

from hookedvid import (
    LV_K,
    PATHWAYS,
    VT_K,
    Ablate,
    AdaptiveExit,
    Black,
    Blurred,
    Drop,
    EarlyExit,
    From,
    Frozen,
    Knockout,
    Patch,
    RandomEdges,
    Replace,
    Reversed,
    SameTime,
    Shuffled,
    Steer,
    Swapped,
)
from hookedvid.errors import InterventionError
from hookedvid.values.effects import Intervention
from hookedvid.values.interventions import _below, as_interventions, from_json, parse, to_json

LINES = {
    "LV-K": LV_K,
    "LV-K @ 4:8": LV_K.at("4:8"),
    "VT-K @~2:4": VT_K.at("~2:4"),
    "cross-frame @ 3": PATHWAYS["cross-frame"].at(3),
    "video→last": PATHWAYS["video→last"],
    "video->question": Knockout("video", "question"),
    "video[2:5] + newlines -> last @ 1:": Knockout("video[2:5]+newlines", "last", "1:"),
    "LV-K @ 4:8 heads 0,3 weight 0.5": Knockout("video", "text", "4:8", heads=(0, 3), weight=0.5),
    "LV-K heads 2:5": Knockout("video", "text", heads=(2, 3, 4)),
    "video->video relation other frame weight 2": Knockout("video", "video", relation="other_frame", weight=2),
    "random like LV-K @ 2: seed 7": RandomEdges(LV_K.at("2:"), 7),
    "random like video->last": RandomEdges(Knockout("video", "last")),
    "exit @ 18": EarlyExit(18),
    "exit @ 3 of video[0:4]": EarlyExit(3, "video[0:4]"),
    "drop @ 2 keep 0.5 by attention": Drop(2, 0.5),
    "drop @ 2 keep 0.25 by text attention of patches": Drop(2, 0.25, "text_attention", "patches"),
    "drop @ 1 by random seed 3": Drop(1, rank="random", seed=3),
    "patch resid_post @ 4 at video[3] from other layer 2": Patch("resid_post", 4, "video[3]", "other", 2),
    "patch embed at video from other": Patch("embed", None, "video", "other"),
    "ablate mlp_out @ 4:8 at video by noise seed 3": Ablate("mlp_out", "4:8", "video", "noise", seed=3),
    "ablate deepstack": Ablate("deepstack"),
    "replace video->last @ 4:8 heads 0,3": Replace("video", "last", "4:8", [0, 3]),
    "replace VT-K by noise seed 2 from set": Replace(
        "video", "video", relation="other_frame", by="noise", source="set", seed=2
    ),
    "steer resid_post @ 4: at last along joy scale -2.5": Steer("resid_post", "4:", "last", "joy", -2.5),
    "reversed": Reversed(),
    "shuffled seed 3": Shuffled(3),
    "frozen frame 2": Frozen(2),
    "swapped 1 with -1": Swapped(1, -1),
    "black": Black(),
    "blurred frames 2:5 in 40,20.5,90,60 sigma 4": Blurred((2, 3, 4), (40, 20.5, 90, 60), 4),
    "from clips/other.mp4": From("clips/other.mp4"),
    "from clips/two  spaces @.mp4": From("clips/two  spaces @.mp4"),
    "same time": SameTime(),
    "adaptive exit by mass below 0.1 @ 4": AdaptiveExit("mass", 0.1, 4),
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_its_value(line):
    assert parse(line) == (LINES[line],)
    assert from_json(to_json(parse(line))) == (LINES[line],)


@pytest.mark.parametrize("line", LINES)
def test_a_value_says_its_line(line):
    assert parse(LINES[line].line()) == (LINES[line],)


def test_a_line_is_said_as_it_is_written_or_not_at_all():
    for line in ("LV-K @ 4:8 heads 0,3 weight 0.5", "video[2:5]+newlines->last @ 1:", "random like LV-K @ 2: seed 7",
                 "replace VT-K by noise from set seed 2", "swapped 1 with -1", "LV-K heads 2:5"):  # fmt: skip
        assert parse(line)[0].line() == line
    unsayable = (
        (Knockout("video", "text", weight=torch.tensor(0.5)), "run it from Python"),
        (Knockout("video", "text", heads={1: [0]}), "as to_json gives"),
        (Knockout("video", "text", keep_self=False), "as to_json gives"),
        (Replace("video", "last", by="resample", source="a by b"), "as to_json gives"),
        (From("a; b.mp4"), "as to_json gives"),
        (Steer("resid_post", 0, "last", torch.ones(4)), "save the vector as safetensors and give the file's path"),
        (Patch("resid_post", 0, source=torch.ones(4)), "give a key of sources"),
    )
    for value, instead in unsayable:
        with pytest.raises(InterventionError, match=f"no line of text says it; .*{instead}"):
            value.line()


def test_a_vectors_file_is_said_without_its_digest(tmp_path):
    path = tmp_path / "v.safetensors"
    save_file({"joy": torch.arange(4.0)}, path)
    steer = Steer("resid_post", 1, "last", f"{path}:joy", 2)
    assert steer.line() == f"steer resid_post @ 1:2 at last along {path}:joy scale 2.0"
    assert parse(steer.line()) == (steer,)


def test_names_are_kept_and_lines_stand_beside_values():
    assert parse("LV-K @ 4:8")[0].label() == "LV-K 5–8"
    assert as_interventions("exit @ 2; VT-K") == (EarlyExit(2), VT_K)
    assert as_interventions(["exit @ 2; VT-K", LV_K]) == (EarlyExit(2), VT_K, LV_K)


@pytest.mark.parametrize("kind", [k for k in _below(Intervention) if k.spelling], ids=lambda k: k.kind)
def test_every_kinds_example_can_be_read(kind):
    (value,) = parse(kind.spelling.example)
    assert isinstance(value, kind)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("LV", r"no knockout 'LV' \(nearest: 'LV-K'.*\); or write source->destination; lines that can be read: "),
        ("", "no knockout ''"),
        ("LV-K; ", "no knockout ''"),
        ("drop 2", r"cannot read '2' in ' 2' \(.*\); write 'drop @ 2 keep 0.5 by attention'; its words are @ layer"),
        ("drop @ two", "cannot read '@' 'two' of ' @ two'; write 'drop @ 2"),
        ("drop @ 2 keep half", "cannot read 'keep' 'half'"),
        ("drop @ 2 keep 0.5 keep 0.4", "says 'keep' twice"),
        ("LV-K heads a", "cannot read 'heads' 'a'"),
        ("LV-K @ 4:8 headz 0", "cannot read layers '4:8 headz 0'"),
        ("LV-K @ 2:4 head 3", "cannot read layers '2:4 head 3'.*; its words are @ layers, heads heads"),
        ("LV-K layers 2:4", "cannot read 'layers 2:4' behind 'LV-K'; write .*; its words are @ layers"),
        ("ablate z @ 3 heads 2 at last", "cannot read layers '3 heads 2'.*; its words are @ layers, at at, by by"),
        ("steer z @ 3 at last by v", "'last by'.*; write 'steer .*; its words are .*along vector, scale scale"),
        ("exit", r"'exit' lacks '@'; write 'exit @ 18'"),
        ("replace LV-K weight 0.5 by mean", "cannot read 'LV-K weight 0.5' as edges alone; write source->destination"),
        ("replace reversed by mean", "cannot read 'reversed' as edges alone"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_with_what_could_be(line, said):
    with pytest.raises(InterventionError, match=said):
        parse(line)

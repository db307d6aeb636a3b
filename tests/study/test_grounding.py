"""Temporal grounding: spans read out of text, their overlap, the shapes clips' spans and the study built on them."""

import csv
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from held_out_clips import held_out_clips
from hookedvid.cli.commands import main
from hookedvid.data.item import Item, read_items, write_items
from hookedvid.data.shapes.clips import TASKS, held_out, in_between, make_dataset, make_items
from hookedvid.data.shapes.scene import N_FRAMES
from hookedvid.data.shapes.tasks import DURATION, FPS, located
from hookedvid.data.shapes.words import COLORS, SHAPES
from hookedvid.errors import DataError
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.report import plots
from hookedvid.study import protocols
from hookedvid.study.definition import Study, plan
from hookedvid.study.results.summary import Outcomes, Summary, summarise
from hookedvid.study.run.tasks import run
from hookedvid.study.scorings.grounding import Grounding, iou, parse_span
from hookedvid.video.frames import read_clip

pytestmark = pytest.mark.shapes_unchecked

LAW = settings(deadline=None, derandomize=True, max_examples=200)

# ---- reading spans -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("12.3 - 15.6 seconds", (12.3, 15.6)),
        ("from 3s to 5s", (3, 5)),
        ("[3, 5]", (3, 5)),
        ("(0.0s, 1.9 sec)", (0, 1.9)),
        ("{3;5}", (3, 5)),
        ("00:12 to 00:15", (12, 15)),
        ("0:05-1:09.5", (5, 69.5)),
        ("1:02:03.5 - 1:02:10", (3723.5, 3730)),
        ("It happens between 3 and 5 seconds.", (3, 5)),
        ("From the time 12 until about 14.5 secs.", (12, 14.5)),
        ("It starts at 2.5s and ends at 7 s", (2.5, 7)),
        ("Start: 3.2, end: 4.8", (3.2, 4.8)),
        ("3.2s–4.8s.", (3.2, 4.8)),
        ("2 min 5 s to 3 minutes", (125, 180)),
        ("1 minute and 5 seconds to 2 minutes and 10.5 seconds", (65, 130.5)),
        ("Frames 3-5 (2.0s to 4.0s)", (2, 4)),
        ("The 2 cats run from 12 to 14.5s", (12, 14.5)),
        ("It is there from 2 to 3 s and from 7 to 9 s", (2, 3)),
        ("5 to 3", (5, 3)),
        ("7 - 7", (7, 7)),
        ("frames 3 to 5", None),
        ("at 5 seconds", None),
        ("1 and 2", None),
        ("10%-20%", None),
        ("2024-05-06", None),
        ("-5 to 3", None),
        ("1e5 - 2e5", None),
        ("1,000 to 2,000", None),
        ("from the start to 5 s", None),
        ("1234567 - 1234568", None),
        ("red", None),
        ("", None),
    ],
)
def test_a_span_is_read_or_there_is_none_but_it_is_never_guessed(text, span):
    assert parse_span(text) == span


@LAW
@given(st.text() | st.text("0123456789.:-–,[]() stominfrae", max_size=120) | st.from_regex(r"[\d:. \-to]{0,300}"))
def test_no_text_makes_the_parser_fail_or_say_what_is_no_time(text):
    span = parse_span(text)
    assert span is None or all(math.isfinite(t) and t >= 0 for t in span)
    if span is not None:
        assert 0.0 <= iou(span, (1.0, 2.0)) <= 1.0


@LAW
@given(
    st.floats(0, 9999), st.floats(0, 9999), st.sampled_from(["{} - {}", "[{}, {}]", "from {}s to {}s", "{}s to {} s."])
)
def test_what_is_written_is_read_back(start, stop, form):
    start, stop = round(start, 2), round(stop, 2)
    assert parse_span(form.format(f"{start:.2f}", f"{stop:.2f}")) == (start, stop)


def test_long_texts_are_read_at_once():
    """No pattern looks back and forth: quadratic reading of this would take minutes."""
    for unit in ("1:", "1 ", "1 - ", "from 1 ", "start 1 ", "[1, ", "1m "):
        parse_span(unit * 20_000)


# ---- overlap -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "gold", "expected"),
    [
        ((1, 2), (1, 2), 1.0),
        ((1, 3), (2, 4), 1 / 3),
        ((0, 4), (1, 2), 1 / 4),
        ((1, 2), (0, 4), 1 / 4),
        ((0, 1), (1, 2), 0.0),
        ((5, 9), (1, 2), 0.0),
        ((1.5, 1.5), (1, 2), 0.0),
        ((2, 1), (1, 2), 0.0),
        ((3, 0), (1, 2), 0.0),
        ((0, 1e6), (1, 2), 1e-6),
    ],
)
def test_overlap_at_the_edges(said, gold, expected):
    said, gold = ((float(s[0]), float(s[1])) for s in (said, gold))
    assert iou(said, gold) == pytest.approx(expected)


SPANS = st.tuples(st.integers(0, 60), st.integers(1, 40)).map(lambda p: (float(p[0]), float(p[0] + p[1])))


@LAW
@given(SPANS, SPANS, st.integers(0, 9), st.sampled_from([0.5, 2.0, 4.0]))
def test_overlap_is_what_counting_seconds_gives(one, other, shift, scale):
    inside = [{t for t in range(101) if s[0] <= t < s[1]} for s in (one, other)]
    expected = len(inside[0] & inside[1]) / len(inside[0] | inside[1])
    assert iou(one, other) == pytest.approx(expected) == pytest.approx(iou(other, one))
    moved = [tuple(scale * (t + shift) for t in s) for s in (one, other)]
    assert iou(moved[0], moved[1]) == pytest.approx(expected)


def test_a_right_span_has_a_length():
    for span in ((2.0, 2.0), (3.0, 1.0), (-1.0, 2.0), (0.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(DataError, match=r"span should be \[start, end\] in seconds"):
            Item(id="a", video="v.mp4", question="when ?", span=span)


def test_spans_and_references_survive_the_file_and_wrong_ones_are_told_by_line(tmp_path):
    items = [
        Item(id="a", video="v.mp4", question="when ?", span=(0.5, 2.0), meta={"duration": 3.0}),
        Item(id="b", video="v.mp4", question="describe", reference="a cat, “asleep”"),
    ]
    write_items(items, tmp_path / "items.jsonl")
    assert read_items(tmp_path / "items.jsonl") == items
    wrong = (
        '"span": [3, 1]',
        '"span": 3',
        '"span": [1, 2, 3]',
        '"span": ["0:01", "0:02"]',
        '"reference": 4',
        '"reference": " "',
    )
    lines = [f'{{"id": "{i}", "video": "v", "question": "q", {x}}}' for i, x in enumerate(wrong)]
    (tmp_path / "wrong.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        read_items(tmp_path / "wrong.jsonl")
    told = str(caught.value).splitlines()[1:]
    assert [f"line {i + 1}" in x for i, x in enumerate(told)] == [True] * len(wrong)
    assert ["span should be" in x for x in told] == [True] * 4 + [False] * 2


# ---- the shapes clips ----------------------------------------------------------------------------------------


def test_spans_say_when_the_clip_shows_it():
    """Frame by frame of the clips as they are written: frame i is shown from i / 8 s on."""
    families = set()
    for scene, _ in make_items(5, "test", 40, 1):
        shown = in_between(scene)
        for item in located("clip", "clip.mp4", scene):
            assert item.span is not None and 0 <= item.span[0] < item.span[1] <= DURATION and item.span != (0, DURATION)
            _, _, _, shape, state, _ = item.question.split()
            (k,) = (k for k in range(4) if shown.visible[0, k].any() and SHAPES[shown.shape[0, k]] == shape)
            here = shown.visible[0, k]
            if item.family == "color":
                here = here & (shown.color[0, k] == COLORS.index(state))
            frames = np.arange(2 * N_FRAMES - 1)
            inside = (item.span[0] <= frames / FPS) & (frames / FPS < item.span[1])
            assert (here == inside).all(), item
            families.add(item.family)
    assert families == {"presence", "color"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    make_dataset(folder, seed=3, split="val", n_videos=5, questions_per_video=2)
    return folder


def test_every_task_is_about_the_same_clips_and_the_same_every_time(made, tmp_path):
    make_dataset(tmp_path, seed=3, split="val", n_videos=5, questions_per_video=2)
    videos = set()
    for file in TASKS.values():
        assert (made / file).read_bytes() == (tmp_path / file).read_bytes()
        items = read_items(made / file)
        videos |= {i.video for i in items}
        assert all((made / i.video).stat().st_size for i in items)
    assert len(videos) == 5
    questions, answers = read_items(made / "items.jsonl"), read_items(made / "answers.jsonl")
    assert [a.reference for a in answers] == [q.options[q.answer] for q in questions if q.answer is not None]
    clip = read_clip(made / questions[0].video, 15, "linspace")
    assert clip.n_total / clip.fps == DURATION
    with pytest.raises(DataError, match="no task 'caption' of the shapes clips"):
        held_out(tmp_path, "caption")


# ---- the study -----------------------------------------------------------------------------------------------


def items_of(n: int, **meta) -> list[Item]:
    return [Item(id=str(i), video=f"{i // 2}.mp4", question="when ?", span=(1.0, 3.0), meta=meta) for i in range(n)]


def table(texts: list[str], **meta) -> Summary:
    items = items_of(len(texts), **meta)
    names = ("status", "span", "text", "correct", "prob", "margin")
    rows = [
        {"item": i.id, "condition": "baseline"} | {n: getattr(Grounding().read_text(i, t), n) for n in names}
        for i, t in zip(items, texts, strict=True)
    ]
    rows[-1] |= {"status": "failed", "span": None}
    values = Outcomes(items, [protocols.BASELINE], rows, Grounding())
    return summarise(values, 100)[0]


def test_an_answer_without_a_span_overlaps_nothing_and_a_failed_one_takes_no_part():
    line = table(["1 - 3 s", "2 - 3 s", "0.0 to 4.0", "nothing", "never run"], duration=4.0)
    assert (line.n, line.failed, line.unparsed) == (4, 1, 1)
    means = {name: i.value for name, i in line.means.items()}
    assert means == pytest.approx(
        {"iou": 2 / 4, "recall_0.3": 3 / 4, "recall_0.5": 3 / 4, "recall_0.7": 1 / 4, "iou_parsed": 2 / 3}
    )
    assert line.score == line.means["iou"] and line.level == pytest.approx(0.5)


def test_the_whole_video_is_no_reference_where_its_length_is_not_told():
    assert math.isnan(table(["1 - 3 s", "1 - 3 s"]).level)
    assert math.isnan(table(["1 - 3 s", "1 - 3 s"], duration="4 s").level)


def test_a_study_generates_reads_and_tables(made, tmp_path, monkeypatch):
    """The shipped model knows no numbers: what it would say is dictated, right intact and wrong under LV-K."""
    net = HookedVideoLLM.from_pretrained("tiny")
    items = read_items(made / "grounding.jsonl")
    laid = plan(Study(scoring="grounding", protocols=("all-layers",)), net, made / "grounding.jsonl")
    assert laid.settings["extractor"] == "span@1"
    dictated = {i.question: f"from {i.span[0]} to {i.span[1]} seconds" for i in items if i.span}

    def say(inputs, interventions, **kwargs):
        asked = net.tokenizer.decode(inputs.tokens[0][inputs.tokens[0] >= 0])
        assert kwargs == {"sources": None, "max_new_tokens": 64, "return_type": "text"} and "<unk>" in asked  # when
        return next(text for q, text in dictated.items() if asked.endswith(q[8:])) if not interventions else "0 - 0.1"

    monkeypatch.setattr(net, "generate", say)
    rows = run(laid, net, tmp_path)
    assert {r["status"] for r in rows} == {"ok"} and all(r["text"] and len(r["span"]) == 2 for r in rows)
    values = Outcomes(laid.items, laid.conditions, rows, laid.scoring)
    lines = {m.condition.label: m for m in summarise(values, 50) if m.group == "all"}
    assert lines["LV-K all layers"].score.value < 0.2 < lines["baseline"].score.value
    axes = plots.all_layers(list(lines.values())).axes[0]
    assert axes.get_ylabel() == "mean IoU" and axes.get_ylim()[0] == 0
    assert "whole video" in [t.get_text() for t in axes.get_legend().get_texts()]


def test_items_without_a_span_are_refused(made):
    net = HookedVideoLLM.from_pretrained("tiny")
    with pytest.raises(DataError, match="have no span to score against"):
        plan(Study(scoring="grounding"), net, made / "items.jsonl")


def test_the_command_says_that_the_shipped_model_names_no_span(tmp_path, tmp_path_factory, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "videos").symlink_to(held_out_clips(tmp_path_factory))
    assert main(["study", "--task", "grounding", "--protocol", "baseline", "--limit", "6", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "mIoU" in printed and "R@0.5" in printed and "whole video" in printed and "accuracy" not in printed
    with (out / "summary.csv").open() as f:
        line = next(csv.DictReader(f))
    assert (line["n"], line["unparsed"], float(line["iou"])) == ("6", "6", 0.0) and float(line["level"]) > 0.3
    assert "accuracy" not in (out / "report.html").read_text()

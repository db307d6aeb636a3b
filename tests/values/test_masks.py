"""Masks against files a person can check, and the laws they obey."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from hookedvid.errors import SelectorError
from hookedvid.values.effects import effects
from hookedvid.values.interventions import LV_K, PATHWAYS, VS_K, VT_K, EarlyExit, Knockout, LayerRange, RandomEdges
from hookedvid.values.layout import FrameBlendWarning, Segment, TokenLayout
from hookedvid.values.masks import NoEdgeWarning, allowed, blocked, cuts_any, kept_positions, masked, warn_of_idle
from models import LAW, blended_layout, each_position, layouts

FOLDER = Path(__file__).parent / "masks"
# Rows are queries, columns keys, 1 = may look; keys after the query are left out. Letters: s system, 0 1 2 patches
# of a frame, n newline, m marker, q question, A B options, t template (whose last token is the last position).
FILES = {
    "lv_k": LV_K,
    "lv_k_trailing": LV_K,
    "lv_k_markers": LV_K,
    "lv_k_markers_are_language": LV_K,
    "vt_k": VT_K,
    "vt_k_trailing": VT_K,
    "vs_k": VS_K,
    "vs_k_trailing": VS_K,
    "vs_k_cut_self": replace(VS_K, keep_self=False),
    "cross_frame": PATHWAYS["cross-frame"],
    "video_to_question": PATHWAYS["video→question"],
    "video_to_last": PATHWAYS["video→last"],
    "question_to_last": PATHWAYS["question→last"],
    "last_to_last": PATHWAYS["last→last"],
}
SELECTORS = st.sampled_from(["video", "patches", "text", "last", "all", "question+last", "video[0]", "video[-1]"])
KNOCKOUTS = st.sampled_from([LV_K, VT_K, VS_K]) | st.builds(
    Knockout,
    SELECTORS,
    SELECTORS,
    st.sampled_from([LayerRange(), LayerRange(1), LayerRange(0, 2), LayerRange(1, 3, outside=True)]),
    st.sampled_from(["any", "same_frame", "other_frame"]),
    st.booleans(),
)


def read(name: str) -> tuple[TokenLayout, list[str]]:
    """The layout a file's second line spells, and the rows below it."""
    _, letters, *rows = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    roles = {"s": "system", "n": "newline", "m": "marker", "q": "question", "A": "options", "B": "options"}
    runs, frame = [], None
    for c in letters.split():
        frame = int(c) if c.isdigit() else frame
        role = "video" if c.isdigit() else roles.get(c, "template")
        in_frame = c.isdigit() or c == "m" or (c == "n" and not name.endswith("trailing"))
        runs.append(Segment(role, 0, 1, frame=frame if in_frame else None, index="AB".find(c) if c in "AB" else None))
    return TokenLayout.of(runs, name.endswith("language")), rows


@pytest.mark.parametrize("name", FILES)
def test_a_mask_is_the_one_in_its_file(name):
    layout, rows = read(name)
    may = allowed(layout, [FILES[name].cut])
    letters = [row[0] for row in rows]
    found = [
        " ".join([c, *(str(int(x)) for x in may[i, : i + 1])])
        for i, c in enumerate(letters)
    ]  # fmt: skip
    assert found == rows
    assert not may.triu(1).any()


def test_every_file_is_tested():
    assert {p.stem for p in FOLDER.iterdir()} == set(FILES)


@LAW
@given(layouts(), st.lists(KNOCKOUTS, max_size=3))
def test_several_knockouts_leave_what_each_of_them_leaves(layout, knockouts):
    causal = torch.ones(layout.n_tokens, layout.n_tokens, dtype=torch.bool).tril()
    each = [allowed(layout, [k.cut]) for k in knockouts]
    assert torch.equal(allowed(layout, [k.cut for k in knockouts]), torch.stack([causal, *each]).all(0))


@LAW
@given(layouts(), KNOCKOUTS)
def test_a_knockout_cuts_by_its_selectors_frames_and_diagonal_alone(layout, knockout):
    src, dst = layout.mask(knockout.src).tolist(), layout.mask(knockout.dst).tolist()
    segments = each_position(layout)
    cut = blocked(layout, knockout.cut)
    in_video = [s.frame is not None or s.role == "newline" for s in segments]
    for i, q in enumerate(segments):
        for j, k in enumerate(segments):
            wanted = dst[i] and src[j]
            # The newline that ends the video (frame None) shares a frame with itself alone.
            same = q.frame == k.frame if None not in (q.frame, k.frame) else i == j
            if knockout.relation != "any":
                wanted &= in_video[i] and in_video[j] and same == (knockout.relation == "same_frame")
            wanted &= not (knockout.keep_self and i == j)
            trailing_self = i == j and q.role == "newline" and q.frame is None
            assert cut[i, j] == wanted or trailing_self, (i, j)


@LAW
@given(layouts())
def test_frames_apart_frames_inside_and_oneself_are_all_of_video_to_video(layout):
    apart, inside = blocked(layout, VT_K.cut), blocked(layout, VS_K.cut)
    oneself = torch.eye(layout.n_tokens, dtype=torch.bool) & layout.mask("video")
    video = layout.mask("video")
    assert torch.equal(apart | inside | oneself, video[:, None] & video[None])
    assert not (apart & inside).any() and not ((apart | inside) & oneself).any()


@LAW
@given(layouts(n_frames=1))
def test_with_one_frame_no_frame_is_another_one_but_to_the_trailing_newline(layout):
    cut = blocked(layout, VT_K.cut)
    trailing = torch.tensor([s.role == "newline" and s.frame is None for s in each_position(layout)])
    rest = ~trailing
    assert not cut[rest][:, rest].any()
    assert torch.equal(allowed(layout, [VT_K.cut])[rest], allowed(layout)[rest])


@LAW
@given(layouts(), st.lists(KNOCKOUTS, max_size=3))
def test_no_knockout_lets_a_query_see_what_comes_after_it_or_more_than_before(layout, knockouts):
    may = allowed(layout, [k.cut for k in knockouts])
    assert not may.triu(1).any()
    assert not (may & ~allowed(layout)).any()


@LAW
@given(layouts(), st.lists(KNOCKOUTS, max_size=2), st.data())
def test_some_rows_and_columns_are_those_of_the_whole_mask(layout, knockouts, data):
    some = st.lists(st.integers(0, layout.n_tokens - 1), min_size=1, unique=True).map(sorted)
    query, key = (torch.tensor(data.draw(some)) for _ in range(2))
    cuts = [k.cut for k in knockouts]
    assert torch.equal(allowed(layout, cuts, query, key), allowed(layout, cuts)[query][:, key])


@LAW
@given(layouts(), st.lists(KNOCKOUTS, max_size=2), st.integers(1, 3))
def test_padding_sees_nothing_is_seen_by_nobody_and_changes_nothing(layout, knockouts, n_pad):
    padded = torch.cat([torch.full((n_pad,), -1), torch.arange(layout.n_tokens)])
    cuts = [k.cut for k in knockouts]
    may = allowed(layout, cuts, padded, padded)
    assert not may[:n_pad].any() and not may[:, :n_pad].any()
    assert torch.equal(may[n_pad:, n_pad:], allowed(layout, cuts))


@LAW
@given(layouts(), st.integers(1, 3))
def test_language_stays_cut_off_however_much_is_generated(layout, n):
    longer = layout.extend(n)
    rows = allowed(longer, [LV_K.cut])[layout.n_tokens :]
    assert not rows[:, longer.mask("video")].any()
    assert rows[:, longer.mask("question")].all()


def test_each_block_has_the_knockouts_of_its_layer():
    a, b = LV_K.at(LayerRange(1, 3)), VT_K.at(~LayerRange(1, 2))
    assert effects([a, EarlyExit(1), b], 4).cuts == ((b.cut,), (a.cut,), (a.cut, b.cut), (b.cut,))


@LAW
@given(layouts())
def test_an_exit_keeps_the_rest_in_order(layout):
    kept = kept_positions(layout, effects([EarlyExit(0)], 1).exits)
    assert kept.tolist() == [i for i, s in enumerate(each_position(layout)) if s.role not in ("video", "newline")]
    assert kept_positions(layout, ()).tolist() == list(range(layout.n_tokens))


def test_a_relation_between_frames_warns_where_tokens_mix_frames():
    layout = blended_layout()
    with pytest.warns(FrameBlendWarning, match="VT-K on tokens that mix 4 frames each cannot separate those frames"):
        blocked(layout, VT_K.cut)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        blocked(layout, LV_K.cut)


@LAW
@given(layouts(), KNOCKOUTS)
def test_whether_a_knockout_cuts_is_what_its_mask_says(layout, knockout):
    present = [s for s in (knockout.src, knockout.dst) if selects(layout, s)]
    if len(present) == 2:
        cut = blocked(layout, knockout.cut) & torch.ones(layout.n_tokens, layout.n_tokens, dtype=torch.bool).tril()
        assert cuts_any(layout, knockout.cut) == bool(cut.any())


def selects(layout, selector):
    try:
        return layout.mask(selector).any()
    except SelectorError:
        return False


@pytest.mark.parametrize(
    ("idle", "cutting"),
    [
        (Knockout("video", "text", relation="same_frame"), VS_K),
        (RandomEdges(Knockout("video", "text", relation="same_frame")), RandomEdges(LV_K)),
        (Knockout("text", "video"), LV_K),
        (Knockout("question", "system"), PATHWAYS["last→last"]),
        (Knockout("video", "system"), Knockout("video", "generated")),  # of which one is still to come
    ],
)
def test_a_knockout_that_cuts_nothing_is_told(idle, cutting):
    runs = [Segment("system", 0, 2), *(Segment("video", 0, 2, frame=f) for f in (0, 1)), Segment("question", 0, 3)]
    layout = TokenLayout.of(runs)
    warn_of_idle([cutting.cut], [layout])
    with pytest.warns(NoEdgeWarning, match="cuts nothing: no position of its destination may look at one of its sour"):
        warn_of_idle([cutting.cut, idle.cut], [layout])
    one_frame = TokenLayout.of([runs[0], runs[1], runs[3]])
    with pytest.warns(NoEdgeWarning, match="VT-K all layers cuts nothing in 1 of 2 items"):
        warn_of_idle([VT_K.cut], [layout, one_frame])


def test_shapes_are_those_that_are_written():
    """In all of the package, wherever a test module is not marked; without this nobody would know that they are."""
    with pytest.raises(TypeCheckError, match=r"key=3"):
        masked(torch.zeros(2, 3), torch.ones(2, 4, dtype=torch.bool))

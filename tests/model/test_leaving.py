"""Drops and adaptive exits against runs in which what left is cut off by a mask, ranked by hand in float64."""

from dataclasses import replace

import pytest
import torch

from hookedvid import AdaptiveExit, Drop, EarlyExit, Session, VideoInputs
from hookedvid.errors import InterventionError
from hookedvid.model.flops import Costs
from hookedvid.model.leaving import RunRecord
from hookedvid.nn.kv import KVCache
from hookedvid.sweep.run import sweep
from hookedvid.sweep.tree import shareable
from hookedvid.values.interventions import LV_K, VT_K, Ablate, Edit, Knockout, from_json, to_json
from models import ROUNDING, UNLIKE, random_model, rich_inputs

pytestmark = [
    pytest.mark.filterwarnings("ignore::hookedvid.values.layout.FrameBlendWarning"),
    pytest.mark.shapes_unchecked,
]
N = 4
RANKS = ("attention", "text_attention", "norm", "time", "space", "uniform", "random")


def model(family, kernel="sdpa"):
    return random_model(family, kernel=kernel, n_layers=N)


def asked(m, seed=0, n_frames=4):
    return rich_inputs(m, n_frames, seed)


def seen(m, x, given=()):
    """Attention patterns [layer, head, query, key] and the streams that enter blocks [layer, pos, d_model]."""
    _, cache = m.run_with_cache(x, interventions=given)
    return (torch.stack([cache[name, i][0] for i in range(N)]) for name in ("pattern", "resid_pre"))


def cut_off(m, x, gone_from, given=()):
    """Last logits of a run in whose block i nobody sees the positions `gone_from[i]`."""

    def hide(mask, hook):
        mask[..., gone_from[hook.layer()]] = False
        return mask

    hooks = [(f"blocks.{i}.attn.hook_mask", hide) for i in gone_from]
    return m.run_with_hooks(x, fwd_hooks=hooks, interventions=given)[0, -1]


def by_hand(rank, x, layer, candidates, patterns, streams, seed=0):
    """What a rank gives each candidate, the highest first to stay."""
    layout, n = x.layout, len(candidates)
    pattern, stream = patterns[layer - 1].mean(0), streams[layer]
    if rank == "attention":
        return pattern[layout.n_prompt - 1, candidates]
    if rank == "text_attention":
        return pattern[layout.mask("text")][:, candidates].mean(0)
    if rank == "norm":
        return stream[candidates].norm(dim=-1)
    if rank == "random":
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        return -torch.empty(n).index_copy_(0, order, torch.arange(n, dtype=torch.float32))
    # By the steps' own rows of positions: every step of these inputs has the same number of them.
    steps = [layout.positions(f"steps[{i}]") for i in range(len(layout.steps))]
    score = {}
    for t, step in enumerate(steps):
        patches = [int(p) for p in step if layout.mask("patches")[p]]
        for j, p in enumerate(map(int, step)):
            near = [int(steps[t - 1][j])] if rank == "time" and t else []
            if rank == "space" and p in patches:
                columns, c = layout.grid.columns, patches.index(p)
                cells = [c - 1] * (c % columns > 0) + [c + 1] * (c % columns < columns - 1) + [c - columns, c + columns]
                near = [patches[i] for i in cells if 0 <= i < len(patches)]
            likeness = [float(torch.cosine_similarity(stream[p], stream[q], dim=0)) for q in near]
            score[p] = -sum(likeness) / len(likeness) if likeness else 1.0
    return torch.tensor([score.get(int(p), 1.0) for p in candidates], dtype=torch.float64)


def kept(rank, x, layer, keep, candidates, patterns, streams, seed=0):
    count = round(len(candidates) * keep)
    if rank == "uniform":
        return candidates[[int((i + 0.5) * len(candidates) / count) for i in range(count)]]
    score = by_hand(rank, x, layer, candidates, patterns, streams, seed)
    order = sorted(range(len(candidates)), key=lambda i: (-float(score[i]), i))
    return candidates[sorted(order[:count])]


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("family", UNLIKE)
def test_what_ranks_last_is_what_nobody_sees_from_there_on(family, rank):
    m = model(family)
    x = asked(m)
    if rank == "space" and family == "internvideo2.5":
        with pytest.raises(InterventionError, match="merged and have no neighbours in space"):
            m(x, interventions=Drop(2, rank=rank))
        return
    video = x.layout.positions("video")
    patterns, streams = seen(m, x)
    first = kept(rank, x, 1, 0.6, video, patterns, streams)
    gone = video[~torch.isin(video, first)]
    assert len(gone) and len(first)
    record = RunRecord()
    got = m(x, interventions=Drop(1, 0.6, rank), record=record)[0, -1]
    assert torch.equal(record.rows[0][0], torch.arange(x.layout.n_tokens))
    assert all(not torch.isin(gone, rows[0]).any() and torch.isin(first, rows[0]).all() for rows in record.rows[1:])
    assert record.left == [[1]]
    assert (got - cut_off(m, x, dict.fromkeys(range(1, N), gone))).abs().max() < ROUNDING
    # A second stage ranks what the first has left, in the run without the others.
    if rank in ("time", "space"):  # whose neighbours have gone: by hand above all are there
        return
    _, cache = m.run_with_cache(x, interventions=Drop(1, 0.6, rank))
    rows, second = cache.rows[1], torch.zeros(N, m.cfg.n_heads, *[x.layout.n_tokens] * 2, dtype=torch.float64)
    second[1][:, rows[:, None], rows] = cache["pattern", 1][0]
    streams = torch.zeros_like(streams).index_copy(1, rows, torch.stack([cache["resid_post", 1][0]] * N))
    last = kept(rank, x, 2, 0.5, first, second, streams)
    gone_then = video[~torch.isin(video, last)]
    got = m(x, interventions=[Drop(2, 0.5, rank), Drop(1, 0.6, rank)])[0, -1]
    wanted = cut_off(m, x, {1: gone, **dict.fromkeys(range(2, N), gone_then)})
    assert (got - wanted).abs().max() < ROUNDING


@pytest.mark.parametrize("rank", ["attention", "text_attention"])
def test_a_rank_looks_at_the_attention_that_positions_had_though_others_leave_with_them(rank):
    """Frames that leave at the same block stood before those that are ranked."""
    m = model("llava-video")
    x = asked(m)
    first, video = x.layout.positions("video[0:2]"), x.layout.positions("video")
    rest = video[~torch.isin(video, first)]
    stay = kept(rank, x, 2, 0.5, rest, *seen(m, x))
    gone = torch.cat([first, rest[~torch.isin(rest, stay)]])
    given = [Drop(2, 0.5, rank), EarlyExit(2, "video[0:2]")]
    assert (m(x, interventions=given)[0, -1] - cut_off(m, x, dict.fromkeys((2, 3), gone))).abs().max() < ROUNDING
    (pattern, _), last = seen(m, x), x.layout.n_prompt - 1
    mass = float(pattern[1].mean(0)[last, rest].sum())
    for threshold, left in ((mass + 1e-9, 2), (mass - 1e-9, None)):
        record = RunRecord()
        rule = AdaptiveExit("mass", threshold, 2)
        m(x, interventions=[rule, EarlyExit(2, "video[0:2]")], stop_at_layer=3, record=record)
        assert record.left == [[left], [2]]


@pytest.mark.parametrize("family", ["llava-onevision", "qwen3-vl"])
@pytest.mark.usefixtures("shapes_checked")
def test_drops_at_their_ends_are_what_there_was(family):
    m = model(family)
    x = asked(m)
    assert torch.equal(m(x, interventions=Drop(2, 1.0)), m(x))
    assert torch.equal(m(x, interventions=Drop(2, 0.0)), m(x, interventions=EarlyExit(2)))
    assert torch.equal(sweep(m, [x], [Drop(2, 0.0)])[0][0], sweep(m, [x], [EarlyExit(2)])[0][0])
    assert torch.equal(m(x, interventions=[EarlyExit(1), EarlyExit(2)]), m(x, interventions=EarlyExit(1)))
    # Two fixed exits are two cuts, in a sweep as in a run.
    stages = [EarlyExit(2), EarlyExit(1, "video[0:2]")]
    assert (m(x, interventions=stages)[0, -1] - sweep(m, [x], [stages])[0][0]).abs().max() < ROUNDING
    assert (m(x, interventions=stages)[0, -1] - Session(m, x).logits(stages)).abs().max() < ROUNDING


LATE = {
    "pyramid": [Drop(1, 0.7), Drop(2, 0.5, "norm"), VT_K.at(range(1, 3))],
    "drop, then exit": [Drop(1, 0.5, "text_attention"), EarlyExit(3), Knockout("video", "text", heads=1, weight=0.5)],
    "frames, then drop": [EarlyExit(1, "video[0:2]"), Drop(2, 0.5, "time")],
    "mass": [AdaptiveExit("mass", 0.3)],
    "answer": [AdaptiveExit("answer", 2)],
    "entropy": [AdaptiveExit("entropy", 0.4), LV_K.at(0)],
}


# Each with two kinds of sequence, each kind with half of them.
@pytest.mark.parametrize(("family", "given"), [(f, LATE[k]) for n, k in enumerate(LATE) for f in UNLIKE[n % 2 :: 2]])
def test_batches_and_generation_leave_as_each_item_does(family, given):
    m = model(family)
    items = [asked(m, 0), asked(m, 1, n_frames=8), asked(m, 2)]
    alone = [m(x, interventions=given)[0, -1] for x in items]
    records = [RunRecord() for _ in items]
    for x, record in zip(items, records, strict=True):
        m(x, interventions=given, record=record)
    together = RunRecord()
    batch = VideoInputs.stack(items)
    logits = m(batch, interventions=given, record=together)[:, -1]
    assert max((a - b).abs().max() for a, b in zip(alone, logits, strict=True)) < ROUNDING
    assert together.left == [[r.left[n][0] for r in records] for n in range(len(together.left))]
    eager = model(family, kernel="eager")(items[0], interventions=given)[0, -1]
    assert (eager - alone[0]).abs().max() < ROUNDING
    with_cache, without = (
        m.generate(batch, given, max_new_tokens=3, use_past_kv_cache=c, return_type="tokens", stop_at_eos=False)
        for c in (True, False)
    )
    assert torch.equal(with_cache, without)
    cache = KVCache(N)
    m(batch, interventions=given, kv_cache=cache)
    step = batch.extend(with_cache[:, :1])
    got = m(step, interventions=given, kv_cache=cache)[:, -1]
    assert (got - m(step, interventions=given)[:, -1]).abs().max() < ROUNDING


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava-video", "qwen3-vl"])
@pytest.mark.usefixtures("shapes_checked")
def test_an_item_leaves_where_its_rule_first_holds(family):
    m = model(family)
    x = asked(m)
    patterns, streams = seen(m, x)
    video, last = x.layout.positions("video"), x.layout.n_prompt - 1
    mass = [float(patterns[i].mean(0)[last, video].sum()) for i in range(N)]
    logits = m.unembed(m.ln_final(streams[:, last]))[:, : m.cfg.n_tokens]
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    for threshold in (sorted(mass)[0] + 1e-9, sorted(mass[:-1])[1] + 1e-9, 0.0):
        record = RunRecord()
        m(x, interventions=AdaptiveExit("mass", threshold), record=record)
        assert record.left == [[next((i + 1 for i in range(N - 1) if mass[i] < threshold), None)]]
    for threshold in (float(entropy[1:].min()) + 1e-9, float(entropy[1]) + 1e-9, 0.0):
        record = RunRecord()
        m(x, interventions=AdaptiveExit("entropy", threshold), record=record)
        assert record.left == [[next((i for i in range(1, N) if entropy[i] < threshold), None)]]
    left = m(x, interventions=AdaptiveExit("mass", 1.0, layer=2))
    assert torch.equal(left, m(x, interventions=EarlyExit(2)))
    options = replace(x, option_tokens=((5, 9),), options=(("a", "b"),))
    said = m.unembed(m.ln_final(streams[:, last]))[:, [5, 9]].argmax(-1).tolist()
    record = RunRecord()
    m(options, interventions=AdaptiveExit("answer", 2), record=record)
    assert record.left == [[next((i for i in range(1, N) if said[i] == said[i - 1]), None)]]


def test_a_write_reaches_what_is_still_there_and_the_cache_says_who():
    m = model("llava-video")
    x = asked(m)
    _, cache = m.run_with_cache(x, interventions=[Drop(1, 0.5), Ablate("resid_post", 2, "video")])
    there = torch.isin(cache.rows[2], x.layout.positions("video"))
    assert int(there.sum()) == round(len(x.layout.positions("video")) / 2)
    assert not cache["resid_post", 2][0, there].any() and cache["resid_post", 2][0, ~there].all(-1).any()
    read = m.attention(x, queries="last", reduce="none", interventions=Drop(1, 0.5)).maps
    gone = torch.ones(x.layout.n_tokens, dtype=torch.bool).index_fill(0, cache.rows[2], False)
    assert float(read[0][..., gone].min()) > 0 and not read[2][..., gone].any()
    with pytest.raises(InterventionError, match=r"at layer 1 \(0-based\): an early exit dropped some"):
        m.attention(x, queries="video", interventions=Drop(1, 0.5))


def test_costs_of_stages_are_those_of_the_rows_that_stay():
    m = model("llava-video")
    x = asked(m)
    lm, n, video = m.cfg.lm, x.layout.n_tokens, len(x.layout.positions("video"))
    costs, stages = Costs(m.cfg, x.layout), [Drop(1, 0.5), Drop(3, 0.5, "random")]
    record = RunRecord()
    m(x, interventions=stages, record=record)
    rows = [n, *[n - video + round(video * 0.5)] * 2, n - video + round(round(video * 0.5) * 0.5)]
    assert [r.shape[1] for r in record.rows] == rows
    pairs = sum(r * (r + 1) // 2 for r in rows)
    assert costs.of(stages).attention == pairs * 4 * lm.n_heads * lm.d_head
    with pytest.raises(InterventionError, match="what it costs is known after the run alone"):
        costs.of([AdaptiveExit("mass", 0.2)])


def test_what_cannot_be_decided_is_refused_in_words():
    m = model("llava-video")
    x = asked(m)
    drop, late = Drop(2), AdaptiveExit("mass", 0.2)
    stream = m.embed_inputs(x)
    with pytest.raises(InterventionError, match=r"decided by what blocks from 1 .0-based. on show, and this run"):
        m(stream, start_at_layer=2, inputs=x, interventions=drop)
    assert torch.equal(m(stream, start_at_layer=0, inputs=x, interventions=drop), m(x, interventions=drop))
    before = m(x, stop_at_layer=1)
    assert torch.equal(m(before, start_at_layer=1, inputs=x, interventions=drop), m(x, interventions=drop))
    for given in (drop, late):
        assert not shareable([given], x.layout, N)
        with pytest.raises(InterventionError, match=r"a sweep cannot share .*: the run decides who leaves"):
            sweep(m, [x], [given])
        with pytest.raises(InterventionError, match="a sweep cannot share"):
            Session(m, x).logits(given)
    with pytest.raises(InterventionError, match=r"reads the attention of blocks that .* writes to"):
        m(x, interventions=[drop, Edit("pattern", 1, torch.zeros_like, "last")])
    with pytest.raises(InterventionError, match=r"cannot drop 'text': it holds text"):
        m(x, interventions=Drop(2, of="text"))
    cache = KVCache(N)
    m(x, kv_cache=cache)
    with pytest.raises(InterventionError, match=r"holds positions in block 2 \(0-based\) that this exit drops"):
        m(x.extend(torch.tensor([[5]])), kv_cache=cache, interventions=drop)
    with pytest.raises(InterventionError, match="the key-value cache was begun without it"):
        m(x.extend(torch.tensor([[5]])), kv_cache=cache, interventions=late)


@pytest.mark.parametrize(
    "given",
    [Drop(2), Drop(3, 0.25, "random", "patches", 7), AdaptiveExit("entropy", 0.5, 2), AdaptiveExit("answer", 3)],
)
def test_exits_are_read_back_from_json(given):
    assert from_json(to_json([given])) == (given,)

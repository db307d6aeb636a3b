"""A reading is the run's own pattern, summed, without the pattern; and the run does not notice."""

import inspect
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hookedvid.errors import HookedVidError, HookError, InputError, InterventionError, SelectorError
from hookedvid.families.registry import small_config
from hookedvid.model.attention_maps import AttentionMap, _Layer
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.nn.structured import Structure
from hookedvid.values.config import VideoLLMConfig
from hookedvid.values.inputs import PAD, VideoInputs
from hookedvid.values.interventions import LV_K, VS_K, VT_K, EarlyExit, Knockout, Patch, RandomEdges
from hookedvid.values.layout import FrameBlendWarning, TokenLayout
from memory_use import measure
from models import (
    MODELS,
    UNLIKE,
    VIDEO_MODELS,
    apart,
    each_position,
    random_inputs,
    random_model,
    rich_inputs,
)

pytestmark = pytest.mark.shapes_unchecked


QUERIES = ("last", "question", "patches", "text+newlines", "all")
CUTS = {
    "none": (),
    "one in each layer": (LV_K.at(0), VT_K.at(1), VS_K.at(2)),
    "no row kept": (replace(VS_K, keep_self=False), Knockout("all", "last", keep_self=False)),
    "random, then exit": (RandomEdges(VT_K.at(0), seed=1), LV_K.at(1), EarlyExit(2)),
}


@pytest.fixture(autouse=True)
def blend_is_known():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FrameBlendWarning)
        yield


def seen_by(model: HookedVideoLLM, n_frames: int = 4, **given) -> VideoInputs:
    """Encoded, so that no run pays the tower."""
    return model.encoded(rich_inputs(model, n_frames, **given))


def whole(model: HookedVideoLLM, inputs: VideoInputs, cuts=(), **kwargs) -> tuple[Tensor, list[Tensor]]:
    """Logits of the last position and each layer's pattern [head, query, key] over all layout positions.

    A layer that is listened to takes the explicit kernel, so each is listened to in a run of its own: what reaches
    it is bitwise what reaches it unheard.
    """
    n, logits, patterns = inputs.layout.n_tokens, torch.empty(0), []
    for i in range(model.cfg.n_layers):
        logits, cache = model.run_with_cache(
            inputs, names_filter=f"blocks.{i}.attn.hook_pattern", interventions=cuts, logits_to_keep=1, **kwargs
        )
        held = torch.arange(n) if cache.rows is None else cache.rows[i]
        full = cache["pattern", i].new_zeros(model.cfg.n_heads, n, n)
        full[:, held[:, None], held[None]] = cache["pattern", i][0]
        patterns.append(full)
    return logits[0, -1], patterns


def sets(layout: TokenLayout, reduce: str) -> dict[str, Tensor]:
    """The positions of every column, by another way than the library's: position by position."""
    steps = {step.start: name for step, name in zip(layout.steps, layout.step_names, strict=True)}
    found: dict[str, list[int]] = {name: [] for name in steps.values()} if reduce == "frames" else {}
    names = {"video": "patches", "newline": "newlines", "marker": "markers"}
    for i, s in enumerate(each_position(layout)):
        if reduce == "segments":
            name = names.get(s.role, s.role) if s.index is None else f"option[{s.index}]"
        else:
            name = steps[s.frame] if s.role in ("video", "newline", "cls") and s.frame is not None else "rest"
        found.setdefault(name, []).append(i)
    return {k: torch.tensor(v) for k, v in found.items()}


def expected(pattern: Tensor, layout: TokenLayout, queries: str, reduce: str) -> Tensor:
    rows = pattern[:, layout.positions(queries)]
    if reduce == "none":
        return rows
    if reduce == "patches":
        patches = rows[:, :, layout.positions("patches")].sum(1)
        return patches.view(len(pattern), len(layout.steps), layout.grid.rows, layout.grid.columns)
    return torch.stack([rows[:, :, p].sum(-1) for p in sets(layout, reduce).values()], -1)


def reductions(model: HookedVideoLLM) -> list[str]:
    if model.cfg.vision is None:
        return ["none", "segments"]
    return ["none", "segments", "frames", *(["patches"] if model.cfg.projector.merge is None else [])]


# A reading meets a family's own parts in any run; what cuts do to it, by the kinds of sequence.
@pytest.mark.parametrize(
    ("name", "cut"),
    [(name, cut) for name in VIDEO_MODELS for cut in (CUTS if name in UNLIKE else ["one in each layer"])],
)
def test_a_reading_is_the_pattern_summed(name, cut):
    model = random_model(name)
    inputs = seen_by(model)
    _, patterns = whole(model, inputs, CUTS[cut])
    exits = [c.layer for c in CUTS[cut] if isinstance(c, EarlyExit)]
    for reduce in reductions(model):
        for queries in QUERIES if name == "llava-video" else ("last", "all"):
            stay = queries in ("last", "question")
            layers = range(exits[0] if exits and not stay else model.cfg.n_layers)
            read = model.attention(inputs, layers, queries, reduce, interventions=CUTS[cut])
            assert read.layers == tuple(layers)
            for i in layers:
                wanted = expected(patterns[i], inputs.layout, queries, reduce)
                assert read[i].shape == wanted.shape and read[i].dtype == torch.float64
                assert (read[i] - wanted).abs().max() <= 1e-12, (reduce, queries, i)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", UNLIKE)
def test_float32_agrees_to_its_rounding_on_both_kernels_and_logits_stay_bitwise(name, kernel):
    model = random_model(name, torch.float32, kernel)
    inputs = seen_by(model, n_frames=8)  # nine columns of frames: more than d_head, so two calls
    for cuts in ((), VS_K):
        with torch.no_grad():  # as a reading does: kernels round otherwise where a gradient may be asked for
            unread = model(inputs, interventions=cuts, logits_to_keep=1)[0, -1]
        _, patterns = whole(model, inputs, cuts)
        for reduce in reductions(model):
            for queries in ("last", "video"):
                read = model.attention(inputs, queries=queries, reduce=reduce, interventions=cuts)
                assert torch.equal(read.logits, unread)
                for i in read.layers:
                    wanted = expected(patterns[i], inputs.layout, queries, reduce)
                    scale = 1 if reduce != "patches" else len(read.queries)
                    # Blocks above ran as kernel calls here and with a mask there, which round apart by some 1e-6.
                    assert (read[i] - wanted).abs().max() <= 5e-6 * scale


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("parts", [{}, {"N_ROWS": 7, "N_SCORES": 400}], ids=["whole", "in parts"])
def test_masses_are_the_same_with_and_without_the_kernels_log_sum_exp(monkeypatch, told, parts):
    for name, value in parts.items():
        monkeypatch.setattr(f"hookedvid.model.attention_maps.{name}", value)
    if not told:
        monkeypatch.setattr("hookedvid.nn.attention.TELLS_LSE", "")
    by_lse = []
    shares = _Layer._shares
    monkeypatch.setattr(_Layer, "_shares", lambda *args: by_lse.append(1) or shares(*args))
    model = random_model("longva")
    inputs = seen_by(model, n_frames=8)
    padded = replace(inputs, tokens=torch.nn.functional.pad(inputs.tokens, (3, 0), value=PAD))
    for cuts in ((), (RandomEdges(VT_K), EarlyExit(2))):
        _, patterns = whole(model, inputs, cuts)
        for given in (inputs, padded):
            for queries in ("last", "text", "all") if not cuts else ("last", "question"):
                read = model.attention(given, queries=queries, reduce="segments", interventions=cuts)
                for i in read.layers:
                    wanted = expected(patterns[i], inputs.layout, queries, "segments")
                    assert (read[i] - wanted).abs().max() <= 1e-12
                    assert not read[i][wanted == 0].any(), "none of the rest of 1 where no key of the set is seen"
    assert bool(by_lse) == told


def test_text_alone_and_raw_tokens_are_read():
    model = random_model("text")
    inputs = random_inputs(model, n_text=20)
    _, patterns = whole(model, inputs)
    for reduce in ("none", "segments"):
        read = model.attention(inputs.tokens, -1, "all", reduce)
        assert read.layers == (2,)
        assert (read[2] - expected(patterns[2], inputs.layout, "all", reduce)).abs().max() <= 1e-12
    assert read.labels == ("question",)


def test_many_rows_are_read_in_parts(monkeypatch):
    monkeypatch.setattr("hookedvid.model.attention_maps.N_ROWS", 7)
    monkeypatch.setattr("hookedvid.model.attention_maps.N_EXPLICIT", 5)
    monkeypatch.setattr("hookedvid.model.attention_maps.N_SCORES", 300)
    test_a_reading_is_the_pattern_summed("llava-video", "one in each layer")
    model = random_model("llava-video", kernel="eager")
    inputs = seen_by(model)
    _, patterns = whole(model, inputs)
    for queries in ("patches", "system+question"):
        read = model.attention(inputs, queries=queries, reduce="segments")
        wanted = expected(patterns[1], inputs.layout, queries, "segments")
        assert (read[1] - wanted).abs().max() <= 1e-12


@pytest.mark.usefixtures("shapes_checked")
@pytest.mark.parametrize("reduce", ["none", "segments", "frames", "patches"])
def test_chosen_heads_are_those_heads_whatever_their_order(reduce):
    model = random_model("llava-video")
    inputs = seen_by(model)
    for cuts in ((), VS_K):
        every = model.attention(inputs, 1, "video", reduce, interventions=cuts)
        some = model.attention(inputs, 1, "video", reduce, heads=[6, 1, 0], interventions=cuts)
        assert some.heads == (6, 1, 0) and every.heads == tuple(range(8))
        assert (some[1] - every[1][[6, 1, 0]]).abs().max() <= 1e-12


@pytest.mark.parametrize("reduce", ["none", "segments", "frames", "patches"])
def test_maps_go_where_they_are_told_and_logits_stay(reduce):
    model = random_model("llava-video")
    read = model.attention(seen_by(model), reduce=reduce, device="meta")
    assert {m.device.type for m in read.maps.values()} == {"meta"} and len(read.maps) == model.cfg.n_layers
    assert read.logits.device.type == "cpu"


@pytest.mark.parametrize("per_head", [False, True])
def test_edits_of_the_mask_are_seen(per_head):
    model = random_model("longva")
    inputs = seen_by(model)

    def edit(mask, hook):
        mask = mask.expand(-1, 8, -1, -1).clone() if per_head else mask
        mask[:, -1, -1, :20] = False
        mask[:, :, 5] = False  # an empty row
        mask[:, :, 6, 7] = True  # a look ahead
        return mask

    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_mask", edit)]):
        logits, patterns = whole(model, inputs)
        for reduce in reductions(model):
            for queries in (*QUERIES[:3], "all"):
                for heads in (None, [0, 7]):
                    read = model.attention(inputs, [1, 2], queries, reduce, heads)
                    for i in (1, 2):
                        wanted = expected(patterns[i], inputs.layout, queries, reduce)
                        wanted = wanted if heads is None else wanted[heads]
                        assert (read[i] - wanted).abs().max() <= 1e-12
        mass = model.attention(inputs, 1, "all", "segments")[1].sum(-1)
    assert torch.equal(mass[:, 5], torch.zeros(8, dtype=torch.float64))
    assert apart(read.logits, logits) < 1e-11
    assert not any(p._forward_hooks for p in model.hook_dict.values())


@pytest.mark.parametrize("name", MODELS)
def test_columns_tile_the_sequence_so_rows_sum_to_one(name):
    model = random_model(name)
    inputs = random_inputs(model) if name == "text" else seen_by(model)
    for reduce in reductions(model)[:3]:
        read = model.attention(inputs, queries="all", reduce=reduce, interventions=() if name == "text" else LV_K)
        for i in read.layers:
            assert (read[i].sum(-1) - 1).abs().max() <= 1e-12
        if reduce == "segments":
            found = torch.stack([inputs.layout.mask(label) for label in read.labels])
            assert torch.equal(found.sum(0), torch.ones(inputs.layout.n_tokens, dtype=torch.long)), "labels select"
        if reduce == "frames":
            assert read.labels == (*inputs.layout.step_names, "rest")
            assert all(inputs.layout.mask(label).any() for label in read.labels[:-1])


def test_a_row_without_keys_is_zero():
    model = random_model("llava-video")
    read = model.attention(seen_by(model), 0, "all", "frames", interventions=Knockout("all", "last", keep_self=False))
    assert torch.equal(read[0][:, -1], torch.zeros(8, 5, dtype=torch.float64))
    assert (read[0][:, :-1].sum(-1) - 1).abs().max() <= 1e-12


@pytest.mark.parametrize("name", UNLIKE)
def test_averaged_queries_are_means_over_those_of_each_segment_or_frame(name):
    model = random_model(name)
    inputs = seen_by(model)
    padded = replace(inputs, tokens=torch.nn.functional.pad(inputs.tokens, (3, 0), value=PAD))
    _, patterns = whole(model, inputs, VS_K.at(1))
    for reduce in ("segments", "frames"):
        columns = sets(inputs.layout, reduce)
        for given, queries, heads in ((inputs, "text+video[1:3]", [5, 2]), (padded, "all", None)):
            read = model.attention(
                given, queries=queries, reduce=reduce, heads=heads, interventions=VS_K.at(1), mean_queries=True
            )
            rows = {k: p[inputs.layout.mask(queries)[p]] for k, p in columns.items()}
            assert read.rows == tuple(k for k in read.labels if len(rows[k]))
            for i in range(3):
                mean = [expected(patterns[i], inputs.layout, "all", reduce)[:, rows[k]].mean(1) for k in read.rows]
                assert (read[i] - torch.stack(mean, 1)[heads or slice(None)]).abs().max() <= 1e-12
            table = read.to_frame()
            assert set(table["query"]) == set(read.rows) and len(table) == sum(m.numel() for m in read.maps.values())


def test_frames_by_frames_are_means_over_a_frames_queries():
    model = random_model("llava-next-video-qwen")
    inputs = seen_by(model)
    _, patterns = whole(model, inputs, VT_K.at(1))
    for queries in ("video", "all"):
        read = model.attention(inputs, queries=queries, reduce="frames", interventions=VT_K.at(1), mean_queries=True)
        between = read.between_frames()
        assert between.shape == (3, 8, 4, 4)
        for f in range(4):
            for g in range(4):
                to, at = inputs.layout.positions(f"video[{f}]"), inputs.layout.positions(f"video[{g}]")
                for i in range(3):
                    wanted = patterns[i][:, to][:, :, at].sum(-1).mean(-1)
                    assert (between[i, :, f, g] - wanted).abs().max() <= 1e-12
        assert torch.equal(between.triu(1), torch.zeros_like(between)), "no frame sees a later one"
        assert torch.equal(between[1].tril(-1), torch.zeros_like(between[1])), "cut by VT-K"


def test_markers_belong_to_no_frame():
    model = random_model("internvideo2.5")
    inputs = seen_by(model)
    assert "marker" in inputs.layout.roles
    read = model.attention(inputs, queries="all", reduce="frames", mean_queries=True)
    _, patterns = whole(model, inputs)
    at = inputs.layout.positions("video[2]")
    assert (read.between_frames()[1, :, 2, 2] - patterns[1][:, at][:, :, at].sum(-1).mean(-1)).abs().max() <= 1e-12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FrameBlendWarning, match="mixes 4 frames"):
            model.attention(inputs, reduce="frames")
        model.attention(inputs, reduce="segments")


def test_a_table_has_a_row_for_every_number():
    model = random_model("llava-onevision")
    read = model.attention(seen_by(model), [2, 0], "question+last", "segments", heads=[3, 5])
    table = read.to_frame()
    assert list(table.columns) == ["layer", "head", "query", "column", "mass"]
    assert len(table) == sum(m.numel() for m in read.maps.values())
    assert set(table["layer"]) == {0, 2} and set(table["head"]) == {3, 5}
    assert set(table["column"]) == set(read.labels) and set(table["query"]) == set(read.queries.tolist())
    one = table[(table.layer == 2) & (table["head"] == 5) & (table["query"] == read.layout.n_tokens - 1)]
    assert one["mass"].tolist() == read[2][1, -1].tolist()
    assert torch.equal(read.mean_heads()[0], read[2].mean(0))


def test_patches_move_the_reading_and_sources_are_passed_on():
    model = random_model("llava-video")
    inputs, other = seen_by(model), seen_by(model, seed=1)
    _, cache = model.run_with_cache(other, names_filter="resid_post")
    patch = Patch("resid_post", 0, "video[1]", "theirs")
    read = model.attention(inputs, 2, reduce="frames", interventions=[patch], sources={"theirs": cache})
    _, patterns = whole(model, inputs, patch, sources={"theirs": cache})
    assert (read[2] - expected(patterns[2], inputs.layout, "last", "frames")).abs().max() <= 1e-12
    whole_pattern = Patch("pattern", 1, "last", model.run_with_cache(other, names_filter="pattern")[1])
    with pytest.raises(HookError, match="pattern of layer 1"):
        model.attention(inputs, interventions=whole_pattern)
    assert model.attention(inputs, [0, 2], interventions=whole_pattern).layers == (0, 2)


def test_masses_of_a_half_type_are_those_of_its_queries_and_keys():
    model = random_model("longva")
    half = HookedVideoLLM.from_config(model.cfg)
    half.load_state_dict(model.state_dict())
    half = half.to(torch.bfloat16)
    inputs = seen_by(half)
    _, cache = half.run_with_cache(inputs, names_filter=["rot_q", "rot_k"])
    q = cache["rot_q", 1][0].double().transpose(0, 1)
    k = cache["rot_k", 1][0].double().repeat_interleave(4, 1).transpose(0, 1)
    ahead = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1)
    pattern = (q @ k.transpose(1, 2) * 8**-0.5).masked_fill(ahead, float("-inf")).softmax(-1)
    read = half.attention(inputs, 1, "video", "segments")
    with torch.no_grad():
        assert torch.equal(read.logits, half(inputs, logits_to_keep=1)[0, -1])
    assert read[1].dtype == torch.float32
    # The eight bits of bfloat16, for weights in the kernel and for the sum. (The explicit kernel is further off:
    # it rounds the scores too.)
    assert (read[1] - expected(pattern, inputs.layout, "video", "segments")).abs().max() <= 2**-8


N = 3000


@pytest.fixture(scope="module")
def long_case() -> tuple[HookedVideoLLM, VideoInputs]:
    cfg = small_config("llava-video", n_layers=2)
    decoder = replace(cfg.decoder, d_model=16, n_heads=2, n_kv_heads=1, d_mlp=16)
    model = HookedVideoLLM.from_config(replace(cfg, decoder=decoder, projector=replace(cfg.projector, d_out=16)))
    inputs = random_inputs(model, n_frames=8, n_text=400, n_prefix=N - 400 - 8 * cfg.tokens_per_frame)
    assert inputs.layout.n_tokens == N
    return model, inputs


@pytest.mark.parametrize(("reduce", "cuts"), [("segments", ()), ("frames", VT_K), ("segments", VS_K), ("frames", LV_K)])
def test_masses_build_nothing_of_query_times_key(long_case, monkeypatch, reduce, cuts):
    model, inputs = long_case
    monkeypatch.setattr(Structure, "dense", lambda self: pytest.fail("the mask of all pairs"))
    for queries in ("all", "last", "question", "video"):
        seen = measure(lambda q=queries: model.attention(inputs, queries=q, reduce=reduce, interventions=cuts))
        assert seen.n_square == 0
        # Scores or a mask for a part of the rows, less than what the forward under these knockouts may build.
        assert seen.numel < N * N / 8


@pytest.mark.parametrize("cuts", [(), VS_K], ids=["intact", "VS-K"])
def test_rows_and_patch_maps_are_streamed(long_case, monkeypatch, cuts):
    model, inputs = long_case
    monkeypatch.setattr(Structure, "dense", lambda self: pytest.fail("the mask of all pairs"))
    alone = measure(lambda: model(inputs, interventions=cuts, logits_to_keep=1)).numel
    rows = measure(lambda: model.attention(inputs, interventions=cuts))
    assert rows.numel <= alone, "a row of each head adds nothing to the peak"
    maps = measure(lambda: model.attention(inputs, queries="all", reduce="patches", interventions=cuts))
    assert maps.n_square == 0 and maps.numel <= max(alone, 2 * 128 * N), "scores of 128 rows and two heads"


def test_where_one_set_holds_most_keys_no_attention_call_is_added(long_case, monkeypatch):
    calls = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or kernel(*a, **k)
    )

    def added(model: HookedVideoLLM, inputs: VideoInputs, reduce: str) -> int:
        calls.clear()
        model(inputs, logits_to_keep=1)
        alone = len(calls)
        model.attention(inputs, queries="all", reduce=reduce)
        return len(calls) - 2 * alone

    assert added(*long_case, "segments") == added(*long_case, "frames") == 0, "most keys are prefix"
    model = random_model("llava-video")
    assert added(model, seen_by(model), "frames") == model.cfg.n_layers


def refused(kind: type[HookedVidError], match: str, name: str = "llava-video", inputs=None, **kwargs) -> None:
    model = random_model(name)
    with pytest.raises(kind, match=match):
        model.attention(inputs or seen_by(model), **kwargs)


def test_errors_name_what_exists():
    refused(InputError, r"layers \[3\] are not all there: this model's are numbered 0 to 2", layers=3)
    refused(InputError, r"layers \[\]", layers=[])
    refused(InputError, r"heads \[0, 8\] .* numbered 0 to 7", heads=[0, 8])
    refused(InputError, r"heads \[\]", heads=[])
    refused(SelectorError, "nearest: 'question'", queries="qestion")
    refused(InputError, "'generated' select nothing: this sequence has system, video", queries="generated")
    refused(InputError, "keep no grid", "internvideo2.5", reduce="patches")
    refused(InputError, "needs a video", "text", random_inputs(random_model("text")), reduce="frames")
    refused(InterventionError, r"at layer 2 \(0-based\).*an early exit", queries="video", interventions=EarlyExit(2))
    tower = HookedVideoLLM.from_config(VideoLLMConfig(family="tower", vision=small_config("longva").vision))
    with pytest.raises(InputError, match="vision tower alone"):
        tower.attention(torch.zeros(2, 3, 70, 70))
    one = seen_by(random_model("llava-video"))
    refused(InputError, "this batch holds 2", inputs=VideoInputs.stack([one, one]))
    with pytest.raises(InputError, match=r"no reduction 'frame' .*'frames'"):
        # Without the type checks that only tests turn on, and that would refuse it first.
        inspect.unwrap(HookedVideoLLM.attention)(random_model("llava-video"), one, reduce="frame")
    read = random_model("llava-video").attention(one, [0, 2])
    assert isinstance(read, AttentionMap)
    with pytest.raises(InputError, match="layer 1 was not read; there are 0, 2"):
        read[1]
    with pytest.raises(InputError, match='reduce="segments" or "frames"'):
        read.to_frame()
    refused(InputError, "mean_queries averages .* not 'none'", mean_queries=True)
    for other in ({"mean_queries": False}, {"queries": "video[:3]"}, {"reduce": "segments"}):
        asked = {"queries": "video", "reduce": "frames", "mean_queries": True} | other
        with pytest.raises(InputError, match='queries="video", reduce="frames", mean_queries=True'):
            random_model("llava-video").attention(one, 0, **asked).between_frames()


def test_listening_on_a_layer_that_is_read_is_refused_and_leaves_nothing_behind():
    model = random_model("llava-video")
    inputs = seen_by(model)
    for point in ("attn_scores", "pattern"):
        with model.hooks(fwd_hooks=[(f"blocks.1.attn.hook_{point}", lambda x, hook: x)]):
            with pytest.raises(HookError, match=r"layer 1 \(0-based\).*run_with_cache"):
                model.attention(inputs)
            assert model.attention(inputs, 0).layers == (0,)
    assert not any(p._forward_hooks for p in model.hook_dict.values())

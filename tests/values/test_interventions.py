"""Interventions as values: layer ranges, labels, JSON forms, and what wrong ones are told."""

import inspect
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from hookedvid.errors import HookedVidError, InterventionError, SelectorError
from hookedvid.values.effects import At
from hookedvid.values.interventions import (
    LV_K,
    PATHWAYS,
    VS_K,
    VT_K,
    Ablate,
    AdaptiveExit,
    Drop,
    EarlyExit,
    Edit,
    Knockout,
    LayerRange,
    Patch,
    RandomEdges,
    Steer,
    as_interventions,
    as_range,
    from_json,
    label,
    to_json,
)
from hookedvid.values.layout import TokenLayout
from models import LAW

ranges = st.builds(
    lambda start, length, outside: LayerRange(start, None if length is None else start + length, outside),
    st.integers(0, 40),
    st.none() | st.integers(1, 40),
    st.booleans(),
)
selectors = st.sampled_from(["video", "text", "last", "all", "video[1]", "patches[0:2]", "question+options"])
knockouts = st.builds(
    Knockout,
    selectors,
    selectors,
    ranges,
    st.sampled_from(["any", "same_frame", "other_frame"]),
    st.booleans(),
    st.sampled_from(["", "mine"]),
    st.sampled_from([None, 3, [0, 2], slice(1, 4), {i: [i % 3, 7] for i in range(41)}]),
    st.sampled_from([0, 0.5, 1, np.float32(2)]),
)
patches = st.builds(
    Patch, st.sampled_from(["resid_post", "z"]), st.integers(0, 9), selectors, st.sampled_from(["clean", "other"])
)
ablations = st.one_of(
    st.builds(Ablate, st.sampled_from(["resid_post", "deepstack", "vision.z"]), ranges, selectors),
    st.builds(Ablate, st.sampled_from(["z", "mlp_out"]), ranges, selectors, st.just("resample"), st.just("other")),
    st.builds(
        Ablate, st.sampled_from(["z", "resid_post"]), ranges, selectors, st.just("noise"), st.none() | st.just("refs"),
        st.integers(0, 9),
    ),
)  # fmt: skip
written = st.one_of(
    st.builds(Patch, st.just("embed"), st.none(), selectors, st.just("clean")),
    st.builds(Patch, st.just("z"), st.integers(0, 9), selectors, st.just("clean"), st.integers(0, 9)),
    st.builds(Steer, st.just("resid_post"), ranges, selectors, st.just("v"), st.floats(-9, 9)),
)
exits = st.builds(EarlyExit, st.integers(0, 9), st.sampled_from(["video", "patches"]))


@LAW
@given(ranges)
def test_inverting_twice_and_writing_a_range_lose_nothing(r):
    assert ~~r == r
    assert LayerRange.parse(str(r)) == r
    assert as_range(str(r)) == r and as_range(r) is r


@LAW
@given(ranges)
def test_a_range_and_its_inverse_split_the_layers(r):
    n = 81  # beyond any stop drawn
    inside, outside = r.layers(n), (~r).layers(n)
    assert sorted(inside + outside) == list(range(n))
    assert (r.start in inside) != r.outside


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("2:4", (2, 3)),
        ("4:", (4, 5)),
        (":2", (0, 1)),
        (":", (0, 1, 2, 3, 4, 5)),
        ("3", (3,)),
        (" ~1:5 ", (0, 5)),
        ("~0", (1, 2, 3, 4, 5)),
    ],
)
def test_written_ranges_are_0_based_and_half_open(text, layers):
    assert LayerRange.parse(text).layers(6) == layers
    assert LV_K.at(text).layers == LayerRange.parse(text)


@pytest.mark.parametrize(
    ("r", "shown"),
    [
        (LayerRange(), "all layers"),
        (~LayerRange(), "no layer"),
        (LayerRange(4, 8), "5–8"),
        (LayerRange(4, 5), "5"),
        (LayerRange(4), "5–"),
        (LayerRange(0, 1), "1"),
        (~LayerRange(4, 8), "not 5–8"),
        (LayerRange.ending(16, 4), "13–16"),
        (LayerRange.ending(4, 4), "1–4"),
    ],
)
def test_labels_count_layers_from_1(r, shown):
    assert r.label() == shown


@given(st.integers(1, 28), st.integers(1, 28))
def test_a_window_ends_where_the_paper_says(x, width):
    if x < width:
        with pytest.raises(InterventionError, match=f"cannot end at layer {x}; the first ends at {width}"):
            LayerRange.ending(x, width)
    else:
        # {x - width + 1, …, x}, counted from 1
        assert [i + 1 for i in LayerRange.ending(x, width).layers(28)] == list(range(x - width + 1, x + 1))


@given(st.integers(0, 27), st.integers(1, 28))
def test_a_centred_window_holds_its_centre_and_is_clipped(centre, width):
    layers = LayerRange.window(centre, width, 28).layers(28)
    unclipped = range(centre - width // 2, centre - width // 2 + width)
    assert list(layers) == [i for i in unclipped if 0 <= i < 28]
    assert centre in layers


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LayerRange(3, 3), "LayerRange(3, 3) holds no layer; layers are 0-based, start < stop"),
        (lambda: LayerRange(-1), "LayerRange(-1, None) holds no layer"),
        (lambda: LayerRange.parse("4-8"), "cannot read layers '4-8'; write 12:16, 12:, :4, 7 or ~12:16"),
        (lambda: LayerRange.parse("a:b"), "cannot read layers 'a:b'"),
        (lambda: LayerRange.parse(""), "cannot read layers ''"),
        (lambda: LayerRange.parse("~"), "cannot read layers '~'"),
        (lambda: LayerRange(2, 9).layers(4), "layers 2:9 reach beyond this model's 4 blocks, numbered 0 to 3"),
        (lambda: LayerRange(5).layers(4), "layers 5: reach beyond this model's 4 blocks"),
        (lambda: EarlyExit(-1), "EarlyExit(-1): count the blocks that keep the video, from 0 up"),
        (lambda: Drop(0), "Drop(0, rank='attention'): blocks are counted from 0, and before block 1 there is no atten"),
        (lambda: Drop(2, 1.5), "1.5 is not a share of positions to keep; give a number from 0 to 1"),
        (lambda: Drop(2, rank="atention"), "no rank 'atention' (nearest: 'attention'"),
        (lambda: AdaptiveExit("mass", 1.5), "1.5 is not a threshold of mass; give a number from 0 to 1"),
        (lambda: AdaptiveExit("answer", 1), "1 is not how many times in a row an answer has to be the same; give a"),
        (lambda: AdaptiveExit("entropy", 1.0, 0), "there is nothing to look at before block 1"),
    ],
)
def test_a_value_that_means_nothing_is_refused(make, message):
    with pytest.raises(InterventionError) as e:
        make()
    assert message in str(e.value)


def test_values_of_a_wrong_type_are_refused_in_words():
    with pytest.raises(InterventionError, match="relation is 'other'; it can be any, same_frame or other_frame"):
        Knockout("video", "text", relation="other")
    with pytest.raises(InterventionError, match="7 is no intervention; give Knockout"):
        as_interventions([LV_K, 7])


SPELLINGS = [
    (lambda: Knockout("video", "last", layers=2), LayerRange(2, 3)),
    (lambda: Knockout("video", "last", layers="2:4"), LayerRange(2, 4)),
    (lambda: Knockout("video", "last", layers=range(2, 4)), LayerRange(2, 4)),
    (lambda: Knockout("video", "last", layers=torch.tensor(2)), LayerRange(2, 3)),
    (lambda: Knockout("video", "last").at(np.int64(2)), LayerRange(2, 3)),
    (lambda: LV_K.at("~2"), LayerRange(2, 3, outside=True)),
]


@pytest.mark.parametrize(("make", "layers"), SPELLINGS)
def test_layers_are_read_in_any_plain_spelling(make, layers):
    made = make()
    assert made.layers == layers and from_json(to_json([made])) == (made,)


def test_selectors_may_be_sequences_and_blocks_texts():
    assert Knockout(["video", "system"], ("last",)) == Knockout("video+system", "last")
    assert Edit("z", "3", abs, ["last", "question"]) == Edit("z", 3, abs, "last+question")
    assert Patch("z", LayerRange(3, 4)) == Patch("z", np.int32(3)) == Patch("z", 3)
    assert to_json([EarlyExit(np.int64(3))]) == to_json([EarlyExit(3)])


LATE = {
    "a tensor as selector": (lambda: Knockout(torch.tensor([1]), "last"), "Tensor is no selector; write names joined"),
    "numbers as selector": (lambda: Patch("z", 1, at=[3, 4]), "list is no selector; write names joined by '+'"),
    "nothing as selector": (lambda: EarlyExit(1, None), "NoneType is no selector"),
    "a part in capitals": (lambda: Knockout(["video", "System"], "last"), "cannot read 'System' in selector 'video+"),
    "several blocks": (lambda: Patch("z", LayerRange(0, 4)), "Patch writes in one block, and layer is LayerRange("),
    "blocks as text": (lambda: Patch("z", "0:4"), "Patch writes in one block, and layer is '0:4'; give one for each"),
    "half a block": (lambda: Edit("z", 1.5, abs), "1.5 is no range of layers"),
    "no block": (lambda: Patch("z"), "None is not a block that Patch could write in"),
    "a block of the stream": (lambda: Patch("embed", 1), "Patch: 'embed' stands in no block, and layers is 1; leave"),
    "blocks of the projector": (lambda: Ablate("projector.out", "0:2"), "'projector.out' stands in no block"),
    "back to no block": (
        lambda: Patch("vision.out", from_layer=1),
        "'vision.out' stands in no block; leave from_layer",
    ),
    "a mean of maps": (lambda: Ablate("pattern", by="mean"), "Ablate by mean writes channels of positions, and"),
    "a map of the tower": (lambda: Ablate("vision.pattern"), "attention in the tower is inside frames"),
    "an unknown way": (lambda: Ablate("z", by="average"), "by is 'average'; it can be zero, mean, resample, noise"),
    "zero from a set": (lambda: Ablate("z", source="refs"), "zero is taken from nowhere; leave source out"),
    "a seed of means": (lambda: Ablate("z", by="mean", seed=1), "only noise is drawn; leave seed out"),
    "another's of nobody": (lambda: Ablate("z", by="resample"), "give the source, another run's cache or its key"),
    "a set that holds none": (lambda: Ablate("z", by="mean", source=3), "its source is 3; give the cache"),
    "a function of three": (lambda: Edit("z", 1, lambda a, b, c: a), "fn takes (a, b, c); give a function of the act"),
    "a function of none": (lambda: Edit("z", 1, lambda: 0), "fn takes (); give a function of the activation, or of"),
    "whole numbers": (lambda: Steer("z", vector=torch.arange(3)), "its vector is torch.int64 (3,); give real numbers"),
    "no numbers": (lambda: Steer("z", vector=torch.tensor([float("nan")])), "holds numbers that are not finite"),
    "a vector to train": (lambda: Steer("z", vector=torch.ones(2, requires_grad=True)), "asks for a gradient"),
    "a pickle": (lambda: Steer("z", vector="v.pt"), "'v.pt' is no safetensors file, and no other is read"),
    "no file": (lambda: Steer("z", vector="no/v.safetensors"), "there is no file 'no/v.safetensors'"),
    "no scale": (lambda: Steer("z", vector="v", scale="2"), "scale is '2'; give a number"),
    "a steered map": (lambda: Steer("attn_scores"), "Steer writes channels of positions"),
    "half an exit": (
        lambda: EarlyExit(1.2),
        "1.2 is not how many blocks an EarlyExit could keep the video for; give a",
    ),
    "a yes": (lambda: EarlyExit(True), "True is not how many blocks"),
    "pairs of layers": (lambda: Knockout("video", "last", layers=(2, 4)), "(2, 4) is no range of layers; write 7, "),
    "every other layer": (lambda: LV_K.at(range(0, 8, 2)), "range(0, 8, 2) is no range of layers"),
    "half a layer": (lambda: LayerRange(0.5, 2), "0.5 is not where a LayerRange begins; give a whole number"),
    "a layer's name": (lambda: Knockout("video", "last", layers="last"), "cannot read layers 'last'; write 12:16"),
    "no hook": (lambda: Edit(3, 1, abs), "3 is no hook point; give its name, such as 'resid_post' or 'z'"),
    "a control of a name": (lambda: RandomEdges("LV-K"), "RandomEdges are drawn like a Knockout, and like is 'LV-K'"),
    "half a seed": (lambda: RandomEdges(LV_K, 0.5), "0.5 is not a seed"),
    "a seed below 0": (lambda: RandomEdges(LV_K, -1), "the seed of RandomEdges is -1; give one from 0 up"),
    "a seed beyond 64 bits": (lambda: RandomEdges(LV_K, 2**64), "is 18446744073709551616; give one from 0 up, below"),
    "a text for yes or no": (lambda: Knockout("video", "text", keep_self="no"), "keep_self is 'no'; it can be True or"),
    "no source": (lambda: Patch("z", 2, source=None), "patch z layer 3 at all: its source is None; give the cache"),
    "a block by a tensor of floats": (lambda: LV_K.at(torch.tensor(2.0)), "tensor(2.) is no range of layers"),
}


@pytest.mark.parametrize(("make", "said"), LATE.values(), ids=LATE)
def test_what_cannot_be_meant_is_refused_when_the_value_is_made(make, said):
    with pytest.raises((InterventionError, SelectorError)) as e:
        make()
    assert said in str(e.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Knockout("question[1]", "text"),
        lambda: Knockout("video", "mine[2]"),
        lambda: Patch("resid_post", 0, at="frame[0][1, 2]"),
        lambda: EarlyExit(0, drop="vid[1:]"),
    ],
)
def test_selectors_are_read_when_the_value_is_made(make):
    with pytest.raises(SelectorError, match="takes no index in"):
        make()


@LAW
@given(st.lists(knockouts | patches | ablations | written | exits, max_size=3))
def test_interventions_survive_json_with_their_labels(values):
    written = json.loads(json.dumps(to_json(values)))
    again = from_json(written)
    assert again == tuple(values)
    assert label(again) == label(values), "the name is no part of equality, but of the label"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "knockuot"}, "no intervention of kind 'knockuot'; there are "),
        ({}, "no intervention of kind None"),
        ({"kind": "knockout", "src": "video", "dts": "text"}, "Knockout has no field 'dts' (nearest: 'dst'"),
        ({"kind": "knockout", "src": "video"}, "Knockout lacks the field 'dst'"),
        ({"kind": "early_exit", "layer": "4"}, "EarlyExit.layer should be a int, got '4'"),
        (
            {"kind": "knockout", "src": "video", "dst": "text", "layers": {"start": 0, "stp": 4}},
            "Knockout.layers has no field 'stp' (nearest: 'stop'",
        ),
        (
            {"kind": "knockout", "src": "video", "dst": "text", "relation": "same"},
            "Knockout.relation should be one of 'any', 'same_frame', 'other_frame', got 'same'",
        ),
    ],
)
def test_unknown_kinds_and_fields_are_refused(data, message):
    with pytest.raises(InterventionError) as e:
        from_json([data])
    assert message in str(e.value)


def test_a_patch_from_a_cache_in_memory_has_no_json_form():
    with pytest.raises(HookedVidError, match="Tensor has no JSON form"):
        to_json([Patch("resid_post", 0, source=torch.zeros(1))])


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([], "baseline"),
        ([LV_K.at(LayerRange(4, 8))], "LV-K 5–8"),
        ([VT_K, VS_K.at(2)], "VT-K all layers + VS-K 3"),
        ([Knockout("video[1]", "last")], "video[1]→last all layers"),
        ([replace(LV_K.at(4), heads=range(2), weight=0.25)], "LV-K 5 heads 0,1 weight 0.25"),
        ([replace(LV_K, heads={4: 0, 6: [3, 1]})], "LV-K layer 5 head 0, layer 7 heads 1,3"),
        ([replace(LV_K, heads={4: 0, "6:8": [3, 1]}).at("6:7")], "LV-K layer 7 heads 1,3"),
        ([RandomEdges(replace(LV_K.at(4), heads=3))], "random like LV-K 5 head 3"),
        ([Knockout("video", "video", relation="same_frame")], "video→video same frame all layers"),
        ([Patch("resid_post", 3, "video[1]")], "patch resid_post layer 4 at video[1]"),
        ([EarlyExit(18), VT_K.at(LayerRange(0, 8))], "exit after layer 18 + VT-K 1–8"),
        ([EarlyExit(2, "patches")], "exit after layer 2 of patches"),
        ([EarlyExit(2, ["video[0]", "newlines"])], "exit after layer 2 of video[0]+newlines"),
    ],
)
def test_labels_say_what_was_done_where(values, shown):
    assert label(values) == shown


def test_the_papers_and_the_neighbours_knockouts_are_one_type_and_named_once():
    named = {"LV-K": LV_K, "VT-K": VT_K, "VS-K": VS_K, **PATHWAYS}
    assert all(isinstance(k, Knockout) and k.name == name for name, k in named.items())
    assert len({replace(k, name="") for k in named.values()}) == len(named), "no two cut the same pairs"


def test_an_exit_as_knockout_begins_with_the_block_that_loses_the_video():
    assert EarlyExit(18).as_knockout() == Knockout("video", "all", LayerRange(18))
    assert EarlyExit(18).as_knockout().layers.layers(28) == tuple(range(18, 28))


def test_what_is_new_in_a_kind_is_left_out_of_json_where_it_is_not_used():
    layers = {"start": 1, "stop": 3, "outside": False}
    assert Ablate("z", "1:3").to_json() == {"kind": "ablate", "hook": "z", "layers": layers, "at": "all"}
    patch = {"kind": "patch", "hook": "z", "layer": 1, "at": "video", "source": "other"}
    assert Patch("z", 1, "video", "other").to_json() == patch
    assert Patch("z", 1, "video", "other", 2).to_json() == {**patch, "from_layer": 2}


def test_values_say_which_sources_they_need():
    values = [
        LV_K,
        EarlyExit(1),
        Ablate("z"),
        Ablate("z", by="mean"),
        Edit("z", 1, abs),
        Steer("z", vector=torch.ones(2)),
    ]
    assert all(v.sources == () for v in values)
    named = [Patch("z", 1, source="other"), Ablate("z", by="noise", source="refs"), Steer("z", vector="smile")]
    assert [v.sources for v in named] == [("other",), ("refs",), ("smile",)]


def test_a_vector_from_a_file_is_known_by_its_numbers(tmp_path):
    path = tmp_path / "v.safetensors"
    save_file({"smile": torch.tensor([1.0, 2.0])}, path)
    alone = Steer("resid_post", 1, "last", str(path), 2)
    assert from_json(to_json([alone])) == (alone,) and len(alone.to_json()["digest"]) == 16
    assert alone != replace(alone, scale=3.0) and hash(alone) == hash(replace(alone))
    save_file({"smile": torch.tensor([1.0, 2.0]), "frown": torch.tensor([0.0, 1.0])}, path)
    with pytest.raises(InterventionError, match=r"'v.safetensors' holds several tensors; write v.safetensors:name, of"):
        Steer("resid_post", vector=str(path))
    with pytest.raises(InterventionError, match=r"holds no 'smlie' .nearest: 'smile'"):
        Steer("resid_post", vector=f"{path}:smlie")
    both = [Steer("resid_post", vector=f"{path}:{key}") for key in ("smile", "frown")]
    assert both[0].effect(4).writes[0] == Steer("resid_post", vector=torch.tensor([1.0, 2.0])).effect(4).writes[0]
    assert both[0] != both[1] and both[0].effect(4).writes[0] != both[1].effect(4).writes[0]
    written = to_json(both)
    save_file({"smile": torch.tensor([1.0, 2.5]), "frown": torch.tensor([0.0, 1.0])}, path)
    with pytest.raises(InterventionError, match="holds other numbers than when this was written"):
        from_json(written[:1])
    assert from_json(written[1:]) == (both[1],)
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(InterventionError, match="is no safetensors file"):
        Steer("resid_post", vector=str(path))
    with pytest.raises(InterventionError, match=r"Tensor has no JSON form; .*; save the vector as safetensors"):
        to_json([Steer("resid_post", vector=torch.ones(2))])


def test_a_function_is_asked_by_as_many_arguments_as_it_needs():
    asked = []
    functions = [lambda a: asked.append(1), lambda a, s=2: asked.append(s), lambda a, at: asked.append(at), torch.abs]
    at = At(TokenLayout(()), torch.arange(0), 0, 0)
    for fn in functions[:3]:
        Edit("z", 0, fn).effect(1).writes[0].fn(torch.ones(1), at)
    assert asked == [1, 2, at]
    assert torch.equal(Edit("z", 0, functions[3]).effect(1).writes[0].fn(-torch.ones(1), at), torch.ones(1))
    with_layers, old = Edit("z", layers="1:3", fn=abs), Edit("z", layer=1, fn=abs)
    assert [w.layer for w in with_layers.effect(5).writes] == [1, 2] and old == Edit("z", 1, abs)


def test_writes_are_equal_by_what_they_do():
    def writes(*values):
        return [w for v in values for w in v.effect(4).writes]

    cache = {"z": torch.ones(1)}
    same = [
        (Edit("z", 1, torch.abs, name="a"), Edit("z", "1:2", torch.abs)),
        (Patch("z", 1, source=cache), Ablate("z", 1, by="resample", source=cache)),
        (Ablate("z", 2, "last"), Ablate("z", "2:3", "last")),
        (Steer("z", 2, vector=torch.ones(2)), Steer("z", 2, vector=torch.ones(2))),
    ]
    assert all(len({*writes(*pair)}) == 1 for pair in same)
    unlike = [
        Edit("z", 1, torch.abs), Edit("z", 1, torch.sign), Edit("z", 1, torch.abs, "last"), Patch("z", 1, source=cache),
        Patch("z", 1, source=dict(cache)), Patch("z", 1, from_layer=2), Patch("z", 1), Ablate("z", 1, by="mean"),
        Ablate("z", 1), Ablate("z", 1, by="noise"), Ablate("z", 1, by="noise", seed=1), Steer("z", 1, vector="v"),
        Steer("z", 1, vector="v", scale=2),
    ]  # fmt: skip
    assert len({*writes(*unlike)}) == len(unlike)


def test_a_vector_stays_what_it_was_when_it_was_given():
    numbers = torch.ones(2)
    steer = Steer("z", vector=numbers)
    numbers += 1
    (write,) = steer.effect(1).writes
    assert torch.equal(write.source.numbers, torch.ones(2)) and steer == Steer("z", vector=torch.ones(2))


def test_json_that_is_no_object_is_refused():
    with pytest.raises(InterventionError, match="no intervention of kind 'LV-K'; there are "):
        inspect.unwrap(from_json)(["LV-K"])

"""Sources of a study: other items' runs and reference sets, against what is run by hand."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from hookedvid.data.item import read_items
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.errors import ConfigError
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.study.definition import Study, plan
from hookedvid.study.run import sources as running
from hookedvid.study.run.tasks import run
from hookedvid.values.interventions import label, parse

pytestmark = pytest.mark.shapes_unchecked

LINES = (
    "patch resid_post @ 4 at video from foil",
    "patch z @ 3 at last from first layer 2",
    "ablate resid_post @ 5 at video by mean from means",
    "replace video->text @ 2:4 by resample from foil",
    "patch resid_post @ 6 at last from clean; LV-K @ :4",
)


@pytest.fixture(scope="module")
def model() -> HookedVideoLLM:
    return HookedVideoLLM.from_pretrained("tiny")


@pytest.fixture(scope="module")
def annotations(tmp_path_factory) -> Path:
    """Two questions on each of two clips."""
    at = tmp_path_factory.mktemp("sources")
    make_dataset(at, seed=3, split="test", n_videos=2, questions_per_video=2)
    return at / "items.jsonl"


@pytest.fixture(scope="module")
def study(annotations) -> Study:
    first = read_items(annotations)[0].id
    how = {"foil": {"paired": "video", "seed": 1}, "first": {"item": first}, "means": {"reference": "all"}}
    how["clean"] = {"paired": "itself"}
    return Study(protocols=("baseline",), custom=tuple((line,) for line in LINES), sources=how)


@pytest.fixture(scope="module")
def by_hand(model, annotations) -> dict:
    """The right option's probability of each item and line, its sources run apart."""
    with torch.no_grad():
        return {
            (i.id, line): probability(model, annotations, i, line) for i in read_items(annotations) for line in LINES
        }


@cache
def prepared(model, path, question, options):
    return model.prepare(path, question, options)


def probability(model, annotations, item, line) -> float:
    items = read_items(annotations)

    def asked(video, one):
        return prepared(model, annotations.parent / video, one.question, one.options)

    values = parse(line)
    sources = {}
    for name in values[0].sources:
        if name == "means":
            caches = [
                model.run_with_cache(asked(i.video, i), names_filter=["blocks.5.hook_resid_post"])[1] for i in items
            ]
            rows = torch.cat([c.at("resid_post", 5, "video")[0] for c in caches]).double()
            sources[name] = {"blocks.5.hook_resid_post": torch.stack([rows.mean(0), rows.std(0, correction=0)])}
        else:
            other = next(i for i in items if i.video != item.video)
            video, one = {"first": (items[0].video, items[0]), "foil": (other.video, item)}.get(
                name, (item.video, item)
            )
            inputs = asked(video, one)
            sources[name] = model.run_with_cache(inputs, names_filter=lambda n: n.endswith(("post", "_v", "_z")))[1]
    return model.answer(asked(item.video, item), values, sources=sources).probs[item.answer]


@torch.no_grad()
@pytest.mark.parametrize("reuse", ["layers+positions", "none"])
def test_rows_are_those_of_sources_run_by_hand(reuse, model, annotations, study, by_hand, tmp_path):
    rows = run(plan(replace(study, reuse=reuse), model, annotations), model, tmp_path)
    assert {r["status"] for r in rows} == {"ok"}, [r["reason"] for r in rows]
    for item in read_items(annotations):
        for line in LINES:
            (row,) = [r for r in rows if r["item"] == item.id and r["condition"] == label(parse(line))]
            # float32, and a run from its first changed block against one from the pixels.
            assert row["prob"] == pytest.approx(by_hand[item.id, line], abs=1e-5)
    assert len(list((tmp_path / "sources").glob("*.safetensors"))) == 1


def test_parts_of_one_video_are_runs_of_their_own(model, annotations, study):
    given = running.Given(plan(study, model, annotations), model)
    first, need = read_items(annotations)[0], running.Need("blocks.0.hook_resid_post", "video")
    asked = []

    def of(item):
        asked.append(item.bound)
        return model.prepare(str(annotations.parent / item.video), item.question, item.options)

    parts = [replace(first, bound=b) for b in ((0.0, 1.0), (1.0, 2.0), (0.0, 1.0))]
    caches = [given._run(part, [need], of) for part in parts]
    assert asked == [(0.0, 1.0), (1.0, 2.0)] and caches[0] is caches[2] is not caches[1]


def test_what_was_made_is_resumed_and_keys_say_what_it_was_made_of(model, annotations, study, tmp_path, monkeypatch):
    laid = plan(study, model, annotations)
    rows = run(laid, model, tmp_path)
    reference = replace(study, custom=(("ablate resid_post @ 5 at video by mean from means; LV-K @ 7",),))
    computed = []
    monkeypatch.setattr(running.Given, "_computed", lambda *a: computed.append(a))
    run(plan(reference, model, annotations), model, tmp_path)
    assert not computed  # another condition, the same numbers
    assert run(laid, model, tmp_path) == rows
    alone = plan(replace(study, custom=(), sources={}), model, annotations)
    assert [t.key for _, _, t in alone.tasks] == [t.key for _, c, t in laid.tasks if c.protocol == "baseline"]
    other = plan(
        replace(study, sources={**study.sources, "means": {"reference": [laid.items[0].id]}}), model, annotations
    )
    same = [a[2].key == b[2].key for a, b in zip(laid.tasks, other.tasks, strict=True)]
    assert same == ["means" not in str(t.interventions) for _, _, t in laid.tasks]


@pytest.mark.parametrize(
    ("how", "line", "said"),
    [
        ({}, LINES[0], r"no source 'foil' \(.*\); name it in the study's sources, as one of item = "),
        ({"foil": {"pared": "video"}}, LINES[0], r"sources.foil is .*; it can be one of item = "),
        ({"foil": {"paired": "question"}}, LINES[0], r"sources.foil is "),
        ({"foil": {"item": "a", "seed": 3}}, LINES[0], r"sources.foil is "),
        ({"foil": {"reference": []}}, LINES[0], r"sources.foil is "),
        ({"foil": 3}, LINES[0], r"sources.foil is 3"),
    ],
)
def test_what_is_no_source_is_refused_where_the_study_is_read(how, line, said):
    with pytest.raises(ConfigError, match=said):
        Study(custom=((line,),), sources=how)


def test_a_protocols_source_is_not_put_in_anothers_place():
    own = {"another video": {"paired": "video"}}
    assert Study(protocols=("attribution",), sources=own).named_sources["another video"].paired == "video"
    with pytest.raises(ConfigError, match=r"protocol 'attribution' takes .* by that name; give yours another"):
        Study(protocols=("attribution",), sources={"another video": {"paired": "video", "seed": 3}})


def test_items_that_are_not_there_are_refused_before_anything_runs(model, annotations):
    missing = Study(protocols=("baseline",), custom=((LINES[0],),), sources={"foil": {"item": "nobody"}})
    with pytest.raises(ConfigError, match=r"sources.foil: no item 'nobody' in this study"):
        plan(missing, model, annotations)
    paired = replace(missing, sources={"foil": {"paired": "video"}})
    with pytest.raises(ConfigError, match="there is no other video to pair"):
        plan(paired, model, annotations, limit=2)


def test_a_source_of_another_form_fails_the_condition_alone(model, annotations, tmp_path):
    wrong = Study(
        protocols=("baseline",),
        custom=(("steer resid_post @ 4 at last along foil",), ("ablate z @ 4 at video by mean from foil",)),
        sources={"foil": {"paired": "video"}},
    )
    rows = run(plan(wrong, model, annotations), model, tmp_path)
    for row in rows:
        failed = row["protocol"] == "custom"
        assert (row["status"] == "failed") == failed
        assert not failed or "which the study's source 'foil' does not give" in row["reason"]

"""What is collected is what a run of each item has, whatever was interrupted; it is read back by layer and label."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hookedvid import Ablate, Activations, Patch, Steer, collect, difference_of_means
from hookedvid.activations import collect as collecting
from hookedvid.activations import files
from hookedvid.cli.commands import main
from hookedvid.data.item import read_items, write_items
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.errors import DataError, HookError, InputError, InterventionError, SelectorError
from hookedvid.values.files import PART
from hookedvid.video.decoders import Decoders
from models import ROUNDING, UNLIKE, random_model

pytestmark = [
    pytest.mark.shapes_unchecked,
    pytest.mark.filterwarnings("ignore::hookedvid.values.layout.FrameBlendWarning"),  # of runs by hand
]
HOOKS = ["embed", "resid_post", "z"]


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    """Two questions on each of three clips, of unequal length; one names a group."""
    path = make_dataset(tmp_path_factory.mktemp("clips"), seed=3, split="test", n_videos=3, questions_per_video=2)
    return path


@pytest.fixture(scope="module")
def decoders():
    with Decoders(1) as running:
        yield running


@pytest.fixture
def gather(questions, decoders, tmp_path):
    """`collect` of a random model, into a folder of this test."""

    def run(name: str = "llava-onevision", folder: str = "acts", items=None, **how) -> Activations:
        how = {"hooks": "resid_post", "at": "video+last", "n_frames": 4, "decoders": decoders, **how}
        source = questions if items is None else items
        where = {} if items is None else {"annotations": questions}
        return collect(random_model(name), source, folder=tmp_path / folder, **where, **how)

    return run


def by_hand(name: str, questions: Path, item, hooks, n_frames: int = 4):
    model = random_model(name)
    clip = questions.parent / item.video
    inputs = model.prepare(clip, item.question, item.options, n_frames=n_frames).with_groups(item.groups)
    with torch.no_grad():
        return inputs, model.run_with_cache(inputs, names_filter=hooks, return_type=None)[1]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


@pytest.mark.parametrize("name", UNLIKE)
def test_rows_are_those_of_each_items_own_run(name, questions, gather):
    acts = gather(name, hooks=HOOKS, batch_size=4)
    assert [i.id for i in acts.items] == [i.id for i in read_items(questions)] and not acts.failed
    for n in (0, 3, 5):
        inputs, cache = by_hand(name, questions, acts.items[n], HOOKS)
        chosen = inputs.layout.positions("video+last")
        for hook, layer in (("embed", None), ("resid_post", 1), ("z", -1)):
            rows = acts.at(hook, layer, items=[n])
            wanted = cache["hook_embed"][0, chosen] if layer is None else cache.at(hook, layer, "video+last")[0]
            assert (rows.values - wanted).abs().max() <= ROUNDING * wanted.abs().max()
        places = inputs.places
        video = rows[rows.position != inputs.layout.n_tokens - 1]
        assert torch.equal(video.position, places.position)
        assert torch.equal(video.row, places.row) and torch.equal(video.column, places.column)
        frames = torch.where(places.frames[:, 0] < 0, -1, inputs.layout.frames[places.position])
        assert torch.equal(video.frame, frames) and set(rows.item.tolist()) == {n}
    assert acts.at("z", 0).video.unique().tolist() == [0, 1, 2]


@pytest.mark.usefixtures("shapes_checked")
def test_pools_are_means_of_the_rows(gather):
    whole = gather(folder="all").at("resid_post", 1)
    for pool in ("mean", "frame", "last"):
        found = gather(folder=pool, pool=pool, batch_size=3).at("resid_post", 1)
        for n in range(6):
            own, here = whole[whole.item == n], found[found.item == n]
            groups = {"mean": [own.position >= 0], "last": [own.position == own.position.max()]}
            groups["frame"] = [own.frame == f for f in range(4)]
            wanted = torch.stack([own.values[g].mean(0) for g in groups[pool]])
            assert (here.values - wanted).abs().max() <= ROUNDING * wanted.abs().max()
        assert found.frame.tolist() == {"mean": [-1] * 6, "frame": [0, 1, 2, 3] * 6, "last": [-1] * 6}[pool]


@pytest.mark.parametrize("name", ["llava-onevision", "internvideo2.5", "qwen3-vl"])
def test_rows_of_tower_and_projector_go_by_their_frames(name, questions, gather):
    acts = gather(name, hooks=["vision.resid_post", "projector.hook_out"], at="video", pool="frame", batch_size=2)
    names = [acts.name("vision.resid_post", 0), "projector.hook_out"]
    _, cache = by_hand(name, questions, acts.items[1], names)
    for hook in names:
        rows = acts.at(hook, items=[1])
        wanted = cache[hook].flatten(0, 1).unflatten(0, (len(rows), -1)).mean(1)  # steps are equally many rows each
        assert (rows.values - wanted).abs().max() <= ROUNDING * wanted.abs().max()


def test_a_call_that_was_interrupted_goes_on(gather, tmp_path, monkeypatch):
    whole = gather(folder="whole", hooks=HOOKS)
    append, ran = files.Writer.append, []

    def cut_short(self, record, kept):
        if len(ran) in (2, 5):
            ran.append(None)
            raise KeyboardInterrupt
        ran.append(record.key)
        append(self, record, kept)

    monkeypatch.setattr(files.Writer, "append", cut_short)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            gather(hooks=HOOKS)
    monkeypatch.setattr(files, "SHARD_ITEMS", 5)
    save = files.save

    def dies_behind_the_shard(path, *rest):
        save(path, *rest)
        if path.parent.name != files.PARTS:
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "save", dies_behind_the_shard)
    with pytest.raises(KeyboardInterrupt):
        gather(hooks=HOOKS)
    monkeypatch.setattr(files, "save", save)
    torn = tmp_path / "acts" / files.PARTS / f"{PART}0.safetensors"  # as a killed process leaves it
    torn.write_bytes(b"half")
    assert len(list((tmp_path / "acts" / files.PARTS).glob("0*"))) == 5  # the shard holds them already
    acts = gather(hooks=HOOKS)
    assert len({x for x in ran if x}) == 6 == len([x for x in ran if x]) and acts.items == whole.items
    assert same(acts.at("z", 2), whole.at("z", 2)) and same(acts.at("embed"), whole.at("embed"))
    assert not list((tmp_path / "acts" / files.PARTS).iterdir())
    assert len(list((tmp_path / "acts").glob("*.safetensors"))) == 2


def test_a_failed_item_is_a_record_and_never_the_end(questions, gather):
    first, second, third, *_ = read_items(questions)
    items = [
        replace(first, video="clips/none.mp4"),
        replace(second, groups={"ball": {"selector": "video[1]"}}),
        third,
        replace(third, id="late", groups={"ball": {"selector": "video[9]"}}),
    ]
    acts = gather(items=items, at="ball", batch_size=4)
    assert [i.id for i in acts.items] == [second.id] and set(acts.failed) == {first.id, third.id, "late"}
    assert "no selector 'ball'" in acts.failed[third.id] and "out of range" in acts.failed["late"]
    assert acts.at("resid_post", 0).frame.unique().tolist() == [1]
    items[0] = replace(first, groups=items[1].groups)  # its video is there now
    items[1] = replace(second, groups=items[1].groups, meta={"seen": "twice"})  # no row of it changes
    again = gather(items=items, at="ball")
    assert again.items[1].meta == {"seen": "twice"} and len(list(again.folder.glob("*.safetensors"))) == 2
    assert {i.id for i in again.items} == {first.id, second.id} and set(again.failed) == {third.id, "late"}
    assert again.at("resid_post", 0).video.tolist() == [0] * len(again.at("resid_post", 0))


def test_what_does_not_fit_a_half_is_a_failed_item(gather):
    acts = gather(dtype="float16", interventions=Ablate("resid_post", 0, "last", by="noise"), hooks=[("resid_post", 0)])
    assert len(acts) == 0 and all("one alone is its own mean" in reason for reason in acts.failed.values())


def test_activations_under_a_condition(questions, gather):
    acts = gather(interventions="LV-K @ 0:3; reversed")
    model, item = random_model("llava-onevision"), acts.items[0]
    inputs = model.prepare(questions.parent / item.video, item.question, item.options, n_frames=4)
    how = {"names_filter": "resid_post", "return_type": None, "interventions": acts.settings["interventions"]}
    how["interventions"] = collecting.as_interventions("LV-K @ 0:3; reversed")
    wanted = model.run_with_cache(inputs, **how)[1].at("resid_post", 2, "video+last")[0]
    assert (acts.at("resid_post", 2, items=[0]).values - wanted).abs().max() <= ROUNDING * wanted.abs().max()


def test_rows_are_chosen_by_label_and_item(gather):
    acts = gather(hooks=HOOKS)
    whole = acts.at("resid_post", -1)
    part = acts.at("resid_post", 2, items=[4, 1], frame=[1, 3], column=0)
    keep = torch.isin(whole.item, torch.tensor([1, 4])) & torch.isin(whole.frame, torch.tensor([1, 3]))
    assert same(part, whole[keep & (whole.column == 0)])
    assert same(acts.at("blocks.2.hook_resid_post"), whole) and acts.at("embed").values.shape == whole.values.shape
    assert "6 items, 7 hook points at 'video+last', not pooled" in repr(acts) and "of 6 items" in repr(whole)
    for wrong, says in (
        ("resid_pre", "was not collected"),
        ("resid_post", "is several"),
        (("resid_post", 1), "its layer is an argument of its own"),
    ):
        with pytest.raises(HookError, match=says):
            acts.at(wrong)
    with pytest.raises(InputError, match="Tensor is no Rows, which know their videos"):
        difference_of_means(whole.values, [True] * len(whole))
    with pytest.raises(DataError, match="no label 'line'"):
        acts.at("embed", line=3)
    with pytest.raises(DataError, match="no row of 'embed'"):
        acts.at("embed", frame=17)
    assert same(acts.at("embed", items=-1, frame=torch.tensor(1)), acts.at("embed", items=[5], frame=[np.int64(1)]))
    for wrong, says in (
        ({"items": [6]}, "no item 6"),
        ({"items": [True, False]}, "items is"),
        ({"row": "1"}, "row is '1'"),
    ):
        with pytest.raises(DataError, match=says):  # a mask would be items 1 and 0
            acts.at("embed", **wrong)


def test_an_item_without_a_row_is_told(gather):
    acts = gather(at="generated", batch_size=2)
    assert not len(acts) and set(acts.failed.values()) == {"no row of blocks.0.hook_resid_post is at 'generated'"}


def test_cuts_of_one_file_are_one_video(questions, gather):
    first = read_items(questions)[0]
    acts = gather(items=[replace(first, id=str(i), bound=(i / 4, 1.0)) for i in range(2)], at="last")
    assert acts.at("resid_post", 0).video.tolist() == [0, 0]


def test_means_and_directions_go_into_interventions(questions, gather):
    acts = gather(at="video")
    rows, model = acts.at("resid_post", 1), random_model("llava-onevision")
    inputs, cache = by_hand("llava-onevision", questions, acts.items[0], "resid_post")
    moments = acts.moments("resid_post", [1])
    assert (moments["blocks.1.hook_resid_post"][0] - rows.values.mean(0)).abs().max() < 1e-12
    assert (moments["blocks.1.hook_resid_post"][1] - rows.values.std(0, correction=0)).abs().max() < 1e-12
    ablated = Ablate("resid_post", 1, "video", by="mean", source=moments)
    direction = difference_of_means(rows, rows.frame == 0)
    steered = Steer("resid_post", 1, "video", direction, 2.0)
    before = cache.at("resid_post", 1, "video")
    for what, wanted in ((ablated, rows.values.mean(0).expand_as(before)), (steered, before + 2 * direction)):
        found = model.run_with_cache(inputs, names_filter="resid_post", interventions=what, return_type=None)[1]
        assert (found.at("resid_post", 1, "video") - wanted).abs().max() < 1e-11


def test_a_folder_is_of_one_setting(gather, tmp_path):
    gather()
    with pytest.raises(DataError, match="holds activations of other settings \\(pool None, now 'mean'"):
        gather(pool="mean")
    shard = next((tmp_path / "acts").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(DataError, match="remove it, and collect its items again"):
        Activations(tmp_path / "acts")
    shard.unlink()
    assert len(gather()) == 6
    (tmp_path / "acts" / files.ITEMS).write_bytes(b'{"items": [')
    with pytest.raises(DataError, match=r"items\.json is damaged"):
        gather()
    (tmp_path / "acts" / files.ITEMS).unlink()
    assert len(gather()) == 6
    (tmp_path / "acts" / files.ABOUT).write_bytes(b"{}")
    with pytest.raises(DataError, match="is damaged"):
        gather()
    with pytest.raises(DataError, match="no activations are in"):
        Activations(tmp_path / "nowhere")
    shutil.rmtree(tmp_path / "acts")


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"hooks": "pattern"}, HookError, "is an attention map"),
        ({"hooks": None}, HookError, "say which"),
        ({"hooks": "ln_final.hook_scale"}, HookError, "is behind the last block"),
        ({"hooks": "resid_pots"}, HookError, "resid_post"),
        ({"at": "vidoe"}, SelectorError, "no selector 'vidoe'"),
        ({"interventions": "ball->text @ 1:"}, SelectorError, "no selector 'ball'"),
        ({"pool": "frame", "at": "last"}, InputError, "no position of 'last' is in a frame"),
        ({"pool": "max"}, InputError, "it can be None, 'mean', 'frame', 'last'"),
        ({"dtype": "int8"}, InputError, "dtype is 'int8'"),
        ({"batch_size": 0}, InputError, "batch_size is 0"),
        ({"items": ["clip.mp4"]}, InputError, "str is no item: collect takes"),
        ({"interventions": Patch("z", 0, "video", "other")}, InterventionError, "takes from 'other'"),
        ({"interventions": "from other.mp4"}, InterventionError, "shows frames of other.mp4"),
    ],
)
def test_what_cannot_be_collected_is_refused_before_anything_runs(gather, tmp_path, how, error, says):
    with pytest.raises(error, match=says):
        gather(**how)
    assert not list(tmp_path.glob("acts/*"))


def test_a_clip_is_encoded_once(gather, monkeypatch):
    tower, runs = type(random_model("llava-onevision").vision), []
    forward = tower.forward
    monkeypatch.setattr(tower, "forward", lambda self, *args: runs.append(len(args[0])) or forward(self, *args))
    for hooks, n in (("resid_post", 3), ("vision.hook_out", 6)):
        gather(hooks=hooks, at="video", folder=hooks)
        assert len(runs) == n
        runs.clear()


def test_the_command_line_collects(questions, tmp_path, capsys):
    path = tmp_path / "items.jsonl"
    write_items([replace(i, video=str(questions.parent / i.video)) for i in read_items(questions)[1:3]], path)
    asked = [
        "collect",
        str(path),
        "--hooks",
        "resid_post",
        "z",
        "--at",
        "video",
        "--pool",
        "frame",
        "--store",
        "float16",
    ]
    assert main([*asked, "--out", str(tmp_path / "acts"), "--under", "LV-K @ 2:4"]) == 0
    assert "2 items, 16 hook points at 'video', pooled by frame, float16" in capsys.readouterr().out
    rows = Activations(tmp_path / "acts").at("z", 5, frame=[2, 3])
    assert rows.values.shape == (4, 4, 32) and rows.values.dtype == torch.float16

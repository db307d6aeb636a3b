"""Whatever goes wrong with one item is its failed row; what is wrong with a whole study is said before it runs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hookedvid.cli.commands import main
from hookedvid.data.item import read_items, write_items
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.data.shapes.words import VOCABULARY, tokenizer
from hookedvid.errors import ConfigError, HookError, InputError, InterventionError, RunError, SelectorError
from hookedvid.families.registry import small_config
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.study.definition import Study, plan
from hookedvid.study.run.estimate import estimate
from hookedvid.study.run.failures import attempt
from hookedvid.study.run.tasks import run
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.values.interventions import LV_K, Black, From, Knockout, Reversed, label, to_json

pytestmark = pytest.mark.shapes_unchecked

LAST = Knockout("option[3]", "last", name="last option")
STUDY = Study(protocols=("all-layers",), custom=(tuple(to_json([LAST])),))


@pytest.fixture(scope="module")
def model() -> HookedVideoLLM:
    return HookedVideoLLM.from_pretrained("tiny")


@pytest.fixture(scope="module")
def annotations(tmp_path_factory) -> Path:
    """3 questions on one clip, the second of which has two options."""
    at = tmp_path_factory.mktemp("failures")
    make_dataset(at, seed=3, split="test", n_videos=1, questions_per_video=3)
    items = read_items(at / "items.jsonl")
    two = replace(items[1], options=items[1].options[:2], answer=0)
    write_items([items[0], two, items[2]], at / "items.jsonl")
    return at / "items.jsonl"


@pytest.mark.parametrize(
    ("reuse", "scoring"),
    [("none", "letters"), ("layers", "letters"), ("layers+positions", "letters"), ("layers", "generate")],
)
def test_a_selector_that_one_item_lacks_fails_its_row_alone(reuse, scoring, model, annotations, tmp_path):
    laid = plan(replace(STUDY, reuse=reuse, scoring=scoring), model, annotations)
    assert "15 rows, 0 of them done" in str(estimate(laid, model, tmp_path))
    rows = run(laid, model, tmp_path)
    (failed,) = [r for r in rows if r["status"] == "failed"]
    assert failed["item"] == laid.items[1].id and failed["condition"] == LAST.label() and failed["fault"] == "input"
    assert "option[3] is out of range" in failed["reason"]
    assert run(laid, model, tmp_path) == rows


def test_an_item_that_fails_costs_the_others_no_bit(model, annotations, tmp_path):
    """Rows of the other items are what they are where that condition is not asked of anybody."""
    rows = run(plan(STUDY, model, annotations), model, tmp_path / "with")
    without = run(plan(replace(STUDY, custom=()), model, annotations), model, tmp_path / "without")
    other = {r["key"]: r for r in without}
    assert other.keys() == {r["key"] for r in rows if r["condition"] != LAST.label()}
    for r in rows:
        if r["key"] in other:
            assert r["prob"] == pytest.approx(other[r["key"]]["prob"], abs=1e-6)  # rounding in float32


def test_ids_beyond_the_embedding_are_an_items_failed_row(annotations, tmp_path):
    """A tokenizer of 96 words over an embedding of 93 rows."""
    n = len(VOCABULARY) - 3
    cfg = replace(small_config("longva", n_layers=2, d_vocab=n), prompt="tiny")
    model = HookedVideoLLM.from_config(cfg, tokenizer=tokenizer())
    item = read_items(annotations)[0]
    fine, asked, offered = (replace(item, id=i, question="what color is snow ?") for i in "abc")
    items = [fine, replace(asked, question="what color is sea ?"), replace(offered, options=("red", "coin"), answer=0)]
    write_items([replace(i, video=str(annotations.parent / item.video)) for i in items], tmp_path / "items.jsonl")
    for scoring, failing in (("letters", "bc"), ("words", "bc"), ("generate", "bc")):
        laid = plan(Study(protocols=("baseline",), scoring=scoring), model, tmp_path / "items.jsonl")
        rows = run(laid, model, tmp_path / scoring)
        failed = [r for r in rows if r["status"] == "failed"]
        assert "".join(r["item"] for r in failed) == failing and {r["fault"] for r in failed} == {"input"}
        assert all(f"are outside this model's vocabulary of {n} rows" in r["reason"] for r in failed)


def test_whatever_goes_wrong_with_an_item_is_its_failed_row_and_what_stops_a_run_is_raised():
    def fails(error):
        raise error

    assert attempt(fails, InputError("no such option")) == Outcome("failed", reason="no such option", fault="input")
    assert attempt(fails, MemoryError("no more")).fault == "memory"
    for error in (RuntimeError("shapes\nof many"), ZeroDivisionError("division by zero"), IndexError(), KeyError("a")):
        found = attempt(fails, error)
        assert isinstance(found, Outcome) and (found.status, found.fault) == ("failed", "error")
        assert found.reason.startswith(
            f"unforeseen {type(error).__name__}: {str(error).partition(chr(10))[0]} (test_fa"
        )
    for error in (RunError("a full disk"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            attempt(fails, error)


def test_groups_of_items_are_selectors_of_a_study_and_a_damaged_one_is_a_failed_row(model, annotations, tmp_path):
    """One clip: two questions with unlike groups, one with none, and all the ways to write a wrong one."""
    first, *rest = read_items(annotations)
    whole = {"frames": [3, 5], "rows": [0, 1], "columns": [0, 2]}
    unlike = {"box": [0, 0, 20, 20], "seconds": [0.0, 2.0]}
    wrong = [3, {"ball": 3}, {"ball": {"boks": 1}}, {"ball": {"frames": 99}}, {"video": whole}, {"ball": {"box": [1]}}]
    items = [replace(first, groups={"ball": whole}), replace(rest[1], id="b", groups={"ball": unlike}), rest[0]]
    items += [replace(first, id=f"wrong {i}", groups=g) for i, g in enumerate(wrong)]
    write_items([replace(i, video=str(annotations.parent / i.video)) for i in items], tmp_path / "items.jsonl")
    assert read_items(tmp_path / "items.jsonl")[0].groups == {"ball": whole}
    named, plain = Knockout("ball", "text", name="the ball"), Knockout("video[3:5][0:1, 0:2]", "text", name="its cells")
    study = Study(protocols=("baseline",), custom=(tuple(to_json([named])), tuple(to_json([plain]))))
    laid = plan(study, model, tmp_path / "items.jsonl")
    assert f"{3 * len(items)} rows, 0 of them done" in str(estimate(laid, model, tmp_path))
    rows = {(r["item"], r["condition"]): r for r in run(laid, model, tmp_path / "out")}
    failed = {item for (item, _), r in rows.items() if r["status"] == "failed"}
    assert failed == {f"wrong {i}" for i in range(len(wrong))} | {items[2].id}
    assert {r["fault"] for r in rows.values() if r["status"] == "failed"} == {"input"}
    assert rows[first.id, "the ball all layers"]["prob"] == rows[first.id, "its cells all layers"]["prob"]
    assert rows["b", "the ball all layers"]["prob"] != rows["b", "its cells all layers"]["prob"]
    lacking = rows[items[2].id, "the ball all layers"]
    assert "no selector 'ball' in 'ball'" in lacking["reason"] and rows[items[2].id, "baseline"]["status"] == "ok"
    mistyped = Study(protocols=("baseline",), custom=(tuple(to_json([Knockout("bal", "text")])),))
    with pytest.raises(SelectorError, match=r"no selector 'bal' in 'bal' .*its groups are ball, video"):
        plan(mistyped, model, tmp_path / "items.jsonl")


@pytest.mark.parametrize("reuse", ["none", "layers", "layers+positions"])
def test_a_study_shows_other_clips_and_refuses_another_files(reuse, model, annotations, tmp_path):
    shown = ((Reversed(),), (Reversed(), LV_K.at("2:")), (Black((0, 1)),))
    study = Study(protocols=("baseline",), custom=tuple(tuple(to_json(c)) for c in shown), reuse=reuse)
    laid = plan(study, model, annotations)
    assert "12 rows" in str(estimate(laid, model, tmp_path))
    rows = run(laid, model, tmp_path)
    assert {r["condition"] for r in rows} == {"baseline", *map(label, shown)}
    for item, condition, task in laid.tasks:
        (row,) = [r for r in rows if r["key"] == task.key]
        inputs = model.prepare(annotations.parent / item.video, item.question, item.options)
        said = model.answer(inputs, condition.interventions)
        assert row["chosen"] == said.index
        assert row["prob"] == pytest.approx(said.probs[item.answer], abs=1e-6)
    with pytest.raises(
        InterventionError, match=r"a study cannot show the frames of b\.mp4, since the keys of its rows"
    ):
        plan(Study(protocols=("baseline",), custom=(tuple(to_json([From("b.mp4")])),)), model, annotations)


@pytest.mark.parametrize("where", ["ours", "ours, permanent", "torch", "torch, before", "torch, everywhere"])
def test_a_model_with_hooks_is_not_studied(where, model, annotations, tmp_path):
    def hook(*args):
        return None

    laid = plan(Study(protocols=("baseline",)), model, annotations)
    handle = None
    if where.startswith("ours"):
        point = "blocks.2.hook_resid_post"
        (model.add_perma_hook if "permanent" in where else model.add_hook)(point, lambda x, hook: x * 0)
    elif where == "torch, everywhere":
        handle = torch.nn.modules.module.register_module_forward_hook(hook)
    else:
        module = model.blocks[0].mlp
        handle = (module.register_forward_pre_hook if "before" in where else module.register_forward_hook)(hook)
    try:
        with pytest.raises(HookError, match=r"there are hooks on .*: remove them"):
            plan(Study(protocols=("baseline",)), model, annotations)
        with pytest.raises(HookError, match="there are hooks on"):
            run(laid, model, tmp_path)
    finally:
        model.reset_hooks(including_permanent=True)
        if handle is not None:
            handle.remove()
    assert {r["status"] for r in run(laid, model, tmp_path)} == {"ok"}


def test_a_study_that_patches_is_refused_where_it_is_read(tmp_path, capsys):
    (tmp_path / "study.toml").write_text(
        'custom = [[{ kind = "patch", hook = "resid_post", layer = 3, at = "video[2]", source = "x" }]]\n'
    )
    with pytest.raises(ConfigError, match="no source"):
        Study.from_toml(tmp_path / "study.toml")
    assert main(["study", str(tmp_path / "study.toml"), "--plan"]) == 2
    assert "no source" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("sampler", "linespace", "no sampler 'linespace'.*nearest: 'linspace'"),
        ("time_instruction", "lava_video", "no time instruction 'lava_video'"),
        ("n_frames", 0, "n_frames is 0"),
    ],
)
def test_sampling_that_no_video_could_have_is_an_error_before_anything_runs(field, value, said, model, annotations):
    with pytest.raises((ConfigError, InputError), match=said):
        plan(replace(STUDY, **{field: value}), model, annotations)

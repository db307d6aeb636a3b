"""hookedvid as a model of lmms-eval: what it reads from arguments, and that lmms-eval's own tasks score it as we do.

The latter need the extra `lmms-eval`, and are skipped where it is not installed.
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clips import cut
from hookedvid import LV_K, VT_K, EarlyExit, HookedVideoLLM, Knockout, lmms, small_config
from hookedvid.data.item import Item, read_items
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.errors import ConfigError, HookedVidError, InputError, InterventionError, VideoError
from hookedvid.lmms import arguments
from hookedvid.model.answers import answer_log_probs
from hookedvid.study.conventions import CONVENTIONS
from hookedvid.study.scorings.generate import Generate
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.values.interventions import Intervention
from models import random_model

ROOT = Path(__file__).parents[2]


# ---- arguments ---------------------------------------------------------------------------------------------


def test_interventions_are_read_from_model_args():
    assert arguments.interventions("", None) == ()
    assert arguments.interventions("LV-K @ 4:8", None) == (LV_K.at("4:8"),)
    joined = Knockout("video", "question+options")
    assert arguments.interventions("video->question+options; VT-K@~2:4", 18) == (
        joined,
        VT_K.at("~2:4"),
        EarlyExit(18),
    )


@pytest.mark.parametrize("knockout", ["LV", "LV-K @ 4-8", "LV-K;", 0])
def test_a_knockout_that_cannot_be_read_is_refused(knockout):
    with pytest.raises(InterventionError):
        arguments.interventions(knockout, None)


@pytest.mark.parametrize("early_exit", [18.0, "18:", True])
def test_counts_are_whole_numbers(early_exit):
    with pytest.raises(InputError, match=r"early_exit is .*; give a whole number"):
        arguments.interventions("", early_exit)


def test_overrides_are_json():
    assert arguments.overrides('{"projector.pool":"average"}') == {"projector.pool": "average"}
    assert arguments.overrides("") == {}
    for wrong in ("projector.pool", "[1]", "{a:1}"):
        with pytest.raises(ConfigError, match="write them as JSON"):
            arguments.overrides(wrong)


def test_generation_follows_the_task_where_it_is_greedy():
    # What Video-MME's task says, with the delimiter that lmms-eval adds to every task.
    task = {"max_new_tokens": 16, "temperature": 0.0, "top_p": 1.0, "num_beams": 1, "do_sample": False}
    assert arguments.generation({**task, "until": ["\n\n"]}) == (16, ())
    assert arguments.generation({"until": ["\n\n", "ASSISTANT:"]}) == (arguments.MAX_NEW_TOKENS, ("ASSISTANT:",))
    assert arguments.generation({"until": "."}).until == (".",)
    assert arguments.generation({"until": None, "image_aspect_ratio": "original"}).until == ()


@pytest.mark.parametrize(
    "asked",
    [{"do_sample": True}, {"temperature": 0.7, "do_sample": False}, {"num_beams": 4}, {"repetition_penalty": 1.1}],
)
def test_what_greedy_generation_does_not_do_is_refused(asked):
    with pytest.raises(InputError, match="answers greedily"):
        arguments.generation({"max_new_tokens": 16, **asked})


def test_an_answer_ends_before_the_first_of_its_ends():
    assert arguments.cut("B. because", ()) == "B. because"
    assert arguments.cut("B. because C\nno", ("\n", ".")) == "B"
    assert arguments.cut("\nB", ("\n",)) == ""


def test_the_entry_point_is_where_lmms_eval_looks():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["lmms_eval.models"] == {"hookedvid": f"{lmms.manifest.__module__}:manifest"}


# ---- lmms-eval's own tasks ---------------------------------------------------------------------------------

# What each adds to `pretrained=tiny`, and the same as values.
CONDITIONS: dict[str, tuple[str, tuple[Intervention, ...]]] = {
    "intact": ("", ()),
    "LV-K": (",knockout=LV-K", (LV_K,)),
    "several": (",knockout=LV-K @ 6:; VT-K @ ~2:4", (LV_K.at("6:"), VT_K.at("~2:4"))),
    "exit": (",early_exit=3", (EarlyExit(3),)),
    "exit and knockout": (",knockout=LV-K @ :2,early_exit=5", (LV_K.at(":2"), EarlyExit(5))),
}
# Its own prompt and extractor, on a model of a family that it has; and a shorter prompt it has for another model,
# on the tiny model, whose own is close enough to that for it to know the answers.
FULL, SHORT, LOSSES = "videomme_mini", "videomme_mini_short", "egoschema_mini_mcppl"
SHORT_PROMPT = 'lmms_eval_specific_kwargs:\n  default: {format: qwen3_vl, pre_prompt: "", post_prompt: answer}\n'
THEIRS = CONVENTIONS["videomme/lmms-eval@2026-07"]
needs_lmms_eval = pytest.mark.filterwarnings("ignore")  # its imports warn


@dataclass
class Miniature:
    """Small copies of Video-MME and EgoSchema where lmms-eval looks for them, with its own tasks pointed there."""

    folder: Path
    items: list[Item]
    rows: dict[str, list[dict]]

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def onevision(self) -> Path:
        return self.folder / "onevision"

    @property
    def tasks(self) -> Path:
        return self.folder / "tasks"

    def video(self, item: Item) -> Path:
        return self.home / "videomme" / "data" / Path(item.video).name


@pytest.fixture(scope="module")
def miniature(tmp_path_factory) -> Miniature:
    lmms_eval = pytest.importorskip("lmms_eval")
    folder = tmp_path_factory.mktemp("lmms")
    items = read_items(make_dataset(folder / "shapes", seed=0, split="test", n_videos=4, questions_per_video=5))
    items = [i for i in items if i.family != "language"]
    mini = Miniature(folder, items, {FULL: [], SHORT: [], LOSSES: []})
    kinds = {"duration": "short", "domain": "Knowledge", "sub_category": "Astronomy", "task_type": "Counting Problem"}
    for item in items:
        assert item.answer is not None
        printed = [f"{letter}. {o}" for letter, o in zip("ABCD", item.options, strict=True)]
        row = {"question_id": item.id, "videoID": Path(item.video).stem, "question": item.question, **kinds}
        mini.rows[FULL].append({**row, "options": printed, "answer": "ABCD"[item.answer]})
        mini.rows[SHORT].append({**mini.rows[FULL][-1], "options": [o.replace(".", "") for o in printed]})
        row = {"video_idx": item.id, "question": item.question, "option": printed, "answer": str(item.answer)}
        mini.rows[LOSSES].append(row)
        for copy in (mini.video(item), mini.home / "egoschema" / "videos" / f"{item.id}.mp4"):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "shapes" / item.video, copy)
    random_model("llava-onevision", torch.float32).save_pretrained(mini.onevision)
    mini.tasks.mkdir()
    theirs = Path(lmms_eval.__file__).parent / "tasks"
    write_task(mini, FULL, theirs / "videomme/videomme.yaml", "videomme")
    write_task(mini, SHORT, theirs / "videomme/videomme.yaml", "videomme", SHORT_PROMPT)
    write_task(mini, LOSSES, theirs / "egoschema/egoschema_subset_mcppl.yaml", "egoschema", "dataset_name: null\n")
    return mini


def write_task(mini: Miniature, name: str, theirs: Path, home: str, more: str = "") -> None:
    """A task that is lmms-eval's in everything but where its rows and videos are."""
    table = mini.folder / f"{name}.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in mini.rows[name]), encoding="utf-8")
    (mini.tasks / f"{name}.yaml").write_text(
        f"include: {theirs}\ntask: {name}\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {table}}}, cache_dir: {home}, video: true}}\n{more}",
        encoding="utf-8",
    )


@pytest.fixture(scope="module")
def evaluate(miniature):
    """lmms-eval on the miniature, in this process."""

    def run(model_args: str, *tasks: str, **kwargs: Any) -> dict[str, Any]:
        from lmms_eval.evaluator import simple_evaluate
        from lmms_eval.tasks import TaskManager

        manager = TaskManager("ERROR", include_path=str(miniature.tasks), include_defaults=False)
        return simple_evaluate(
            model="hookedvid", model_args=model_args, tasks=list(tasks), task_manager=manager, batch_size=1,
            device="cpu", bootstrap_iters=0, **kwargs,
        )  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(miniature).items():
            patch.setenv(name, value)
        yield run


@pytest.fixture(scope="module")
def found(evaluate):
    """What lmms-eval finds on the tiny model under a condition."""
    return cache(lambda condition: evaluate(f"pretrained=tiny{CONDITIONS[condition][0]}", SHORT, LOSSES))


def samples(said: dict[str, Any], task: str) -> list[dict]:
    return sorted(said["samples"][task], key=lambda s: s["doc_id"])


def environment(mini: Miniature) -> dict[str, str]:
    return {"HF_HOME": str(mini.home), "HF_DATASETS_CACHE": str(mini.folder / "datasets"), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def model() -> HookedVideoLLM:
    return HookedVideoLLM.from_pretrained("tiny")


@needs_lmms_eval
@pytest.mark.parametrize(
    ("more", "interventions"),
    [
        ("", ()),
        (",knockout=LV-K", (LV_K,)),
        (",knockout=LV-K @ :1; VT-K @ ~1,early_exit=2", (LV_K.at(":1"), VT_K.at("~1"), EarlyExit(2))),
    ],
)
def test_its_task_finds_what_our_study_finds(evaluate, miniature, more, interventions):
    said = evaluate(f"pretrained={miniature.onevision}{more}", FULL)
    model = HookedVideoLLM.from_pretrained(miniature.onevision)
    ours = []
    for item in miniature.items:
        inputs = Generate(THEIRS).inputs(partial(model.prepare, miniature.video(item)), model, item)
        ours.append(Generate(THEIRS).generated(model, item, inputs, interventions))
    assert len({o.text for o in ours}) > 3  # it says different things of different videos
    agree(said, FULL, miniature, ours)


def agree(said: dict[str, Any], task: str, miniature: Miniature, ours: list[Outcome]) -> float:
    """Answers, extracted letters and score are the same; returns the score, in percent."""
    theirs = samples(said, task)
    assert [s["filtered_resps"][0] for s in theirs] == [o.text for o in ours]
    letters = ["" if o.chosen is None else "ABCD"[o.chosen] for o in ours]
    assert [s["videomme_perception_score"]["pred_answer"] for s in theirs] == letters
    counted = [THEIRS.counted(i, o.text, o.chosen) for i, o in zip(miniature.items, ours, strict=True)]
    assert None not in counted and len(counted) >= 12
    score = said["results"][task]["videomme_perception_score,none"]
    assert score == pytest.approx(100 * sum(c or 0 for c in counted) / len(counted))
    return score


@needs_lmms_eval
@pytest.mark.parametrize("condition", CONDITIONS)
def test_interventions_reach_the_answers(found, miniature, model, condition):
    ours = []
    for item, row in zip(miniature.items, miniature.rows[SHORT], strict=True):
        asked = "\n".join([item.question, "Options:", *row["options"], "answer"])
        text = model.generate(model.prepare(miniature.video(item), asked), CONDITIONS[condition][1], max_new_tokens=16)
        ours.append(Generate(THEIRS).read_text(item, text))
    score = agree(found(condition), SHORT, miniature, ours)
    assert condition not in ("intact", "LV-K") or (score > 90 if condition == "intact" else score < 60)


@needs_lmms_eval
@pytest.mark.parametrize("condition", CONDITIONS)
def test_options_are_chosen_by_the_loss_of_their_tokens(found, miniature, model, condition):
    said = found(condition)
    theirs, intact = samples(said, LOSSES), samples(found("intact"), LOSSES)
    assert (theirs[0]["filtered_resps"] == intact[0]["filtered_resps"]) == (condition == "intact")
    right = []
    for item, sample in zip(miniature.items, theirs, strict=True):
        inputs = model.prepare(miniature.video(item), item.question)
        losses = [loss(model, inputs, CONDITIONS[condition][1], option) for option in item.options]
        # float32: one run over the answer against one for each of its tokens.
        assert [r[0] for r in sample["filtered_resps"]] == pytest.approx(losses, abs=1e-4)
        chosen = min(range(4), key=losses.__getitem__)
        assert sample["score"]["pred"] == chosen
        right.append(chosen == item.answer)
    assert said["results"][LOSSES]["score,none"] == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize(
    ("prompt", "end"),
    [("qwen_1_5", "<|im_end|>"), ("internlm2-chat", "<|im_end|>"), ("plain", "<|im_end|>")],
)
@torch.no_grad()
def test_an_answer_has_one_end_and_one_likelihood_in_the_plug_in_and_in_studies(plug_in, prompt, end):
    """Generation stops at it; the template's line break behind it begins the next turn."""
    plug_in.model = HookedVideoLLM.from_config(replace(small_config("llava-onevision"), prompt=prompt))
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    prepared = plug_in.model.prepare(frames, "what ?", n_frames=4, answer="a red ring")
    answer = plug_in._answer_tokens("what ?", "a red ring")
    assert torch.equal(prepared.tokens[:, prepared.layout.n_prompt :], answer)
    assert plug_in.model.tokenizer.decode(answer[0]).strip() == f"a red ring{end}"
    found, _ = plug_in._loss(plug_in.model.prepare(frames, "what ?", n_frames=4), answer)
    log_probs = answer_log_probs(plug_in.model(prepared)[0], prepared, plug_in.model.cfg.n_tokens)
    assert found == pytest.approx(-log_probs.mean().item(), abs=1e-5)  # float32, the last rows alone


@pytest.fixture
def plug_in(monkeypatch):
    """The plug-in's class on stand-ins for the three names that it takes from lmms-eval, which need not be there."""
    base = type("lmms", (), {"rank": 0})
    names = {"": {}, ".api": {}, ".api.instance": {"GenerationResult": tuple}, ".api.model": {"lmms": base}}
    for name, values in names.items():
        module = ModuleType(f"lmms_eval{name}")
        module.__dict__.update(values, __path__=[])
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "hookedvid.lmms.plugin", raising=False)
    from hookedvid.lmms.plugin import HookedVid

    yield HookedVid("tiny", device="cpu")
    sys.modules.pop("hookedvid.lmms.plugin", None)


@torch.no_grad()
def loss(model: HookedVideoLLM, inputs: Any, interventions: Any, word: str) -> float:
    """Mean negative log-likelihood of a word and the end, token by token."""
    ids = model.tokenizer.convert_tokens_to_ids([word, "<eos>"])
    assert model.tokenizer.unk_token_id not in ids
    total = 0.0
    for i in ids:
        logits = model(inputs, interventions=interventions, logits_to_keep=1)[0, -1, : model.cfg.n_tokens]
        total -= logits.log_softmax(-1)[i].item()
        inputs = inputs.extend(torch.tensor([[i]]))
    return total / len(ids)


@needs_lmms_eval
def test_conditions_do_not_share_cached_answers(evaluate, found, tmp_path):
    for condition in ("intact", "LV-K", "intact"):  # lmms-eval's key holds --model_args
        again = evaluate(f"pretrained=tiny{CONDITIONS[condition][0]}", SHORT, use_cache=str(tmp_path))
        answers = [[s["filtered_resps"] for s in samples(said, SHORT)] for said in (again, found(condition))]
        assert answers[0] == answers[1]


@needs_lmms_eval
def test_a_video_that_fails_ends_the_run(evaluate, miniature):
    broken = miniature.video(miniature.items[-1])
    whole = broken.read_bytes()
    cut(broken, broken, 0.5)
    try:
        with pytest.raises(VideoError) as failure:
            evaluate("pretrained=tiny", FULL)
    finally:
        broken.write_bytes(whole)
    first = next(i for i, item in enumerate(miniature.items) if miniature.video(item) == broken)
    assert any(f"document {first} of {FULL}" in note for note in failure.value.__notes__)


@needs_lmms_eval
@pytest.mark.parametrize(
    ("more", "gen_kwargs", "message"),
    [
        (",knockout=LV-K @ 4:99", None, "8 blocks"),
        (",early_exit=9", None, "8 blocks"),
        (",early_exit=0.5", None, "whole number"),
        (",n_frames=0", None, "frame"),
        (",knockout=video->options", None, "options"),
        ("", "temperature=1,do_sample=True", "greedily"),
    ],
)
def test_what_cannot_be_run_is_refused(evaluate, more, gen_kwargs, message):
    with pytest.raises(HookedVidError, match=message):
        evaluate(f"pretrained=tiny{more}", SHORT, gen_kwargs=gen_kwargs, limit=1)


@needs_lmms_eval
def test_only_one_video_by_its_path_is_asked_about(miniature, tmp_path):
    from hookedvid.lmms.plugin import HookedVid

    plugin = HookedVid("tiny", device="cpu")
    plugin.task_dict = {"t": {"test": [None]}}
    clip = str(miniature.video(miniature.items[0]))
    for visuals in (None, [], [clip, clip], [object()]):
        with pytest.raises(InputError, match="one video"):
            plugin._inputs("what ?", lambda doc, shown=visuals: shown, 0, "t", "test")
    with pytest.raises(InputError, match="places <image> itself"):
        plugin._inputs("<image> what ?", lambda doc: [clip], 0, "t", "test")
    with pytest.raises(InputError, match="batch_size is 4"):
        HookedVid("tiny", device="cpu", batch_size=4)


@needs_lmms_eval
def test_a_frame_cut_short_is_refused_though_lmms_eval_lets_it_pass(miniature, tmp_path):
    from hookedvid.lmms.plugin import HookedVid

    plugin = HookedVid("tiny", device="cpu")
    plugin.task_dict = {"t": {"test": [None]}}
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "0.png")
    cut(tmp_path / "0.png", tmp_path / "0.png", 0.5)
    with pytest.raises(VideoError, match="cannot be read"):
        plugin._inputs("what ?", lambda doc: [str(tmp_path)], 0, "t", "test")


@needs_lmms_eval
def test_the_command_line_says_the_same(found, miniature, tmp_path):
    model_args = f"pretrained=tiny{CONDITIONS['several'][0]}"
    command = [
        sys.executable, "-m", "lmms_eval", "--model", "hookedvid", "--model_args", model_args, "--tasks", SHORT,
        "--include_path", str(miniature.tasks), "--device", "cpu", "--output_path", str(tmp_path), "--log_samples",
        "--verbosity", "DEBUG",
    ]  # fmt: skip
    subprocess.run(command, env={**os.environ, **environment(miniature)}, check=True, capture_output=True)
    (written,) = tmp_path.glob("tiny/*_results.json")
    said = json.loads(written.read_text(encoding="utf-8"))
    assert said["config"]["model_args"] == model_args
    metric = "videomme_perception_score,none"
    assert said["results"][SHORT][metric] == found("several")["results"][SHORT][metric]

"""Scoring by the likelihood of a reference: teacher forcing is generation, and the study built on it."""

import csv
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from held_out_clips import held_out_clips
from hookedvid.cli.commands import main
from hookedvid.data.item import Item, read_items, write_items
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.data.shapes.words import VOCABULARY, tokenizer
from hookedvid.errors import ConfigError, DataError, InputError
from hookedvid.families.prompts import QuestionForm, Template
from hookedvid.families.registry import TEMPLATES, small_config
from hookedvid.model.answers import answer_log_probs
from hookedvid.model.flops import Costs
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.nn.kv import KVCache
from hookedvid.report import plots
from hookedvid.study import protocols
from hookedvid.study.definition import Study, plan
from hookedvid.study.results.findings import findings
from hookedvid.study.results.summary import Outcomes, summarise
from hookedvid.study.run import tasks as running
from hookedvid.study.run.estimate import estimate
from hookedvid.study.run.tasks import run
from hookedvid.study.scorings.likelihood import Likelihood
from hookedvid.sweep.run import sweep
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import LV_K, VS_K, VT_K, EarlyExit, Knockout, LayerRange, RandomEdges
from models import UNLIKE, random_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::hookedvid.values.layout.FrameBlendWarning"),
    pytest.mark.shapes_unchecked,
]

EXACT = 1e-12  # float64: the same sums in another order, log-probabilities of order 10
GIVEN = {
    "intact": [],
    "LV-K": [LV_K],
    "LV-K late": [LV_K.at(LayerRange(1))],
    "VT-K and VS-K windows": [VT_K.at(LayerRange(0, 2)), VS_K.at(1)],
    "video to last": [Knockout("video", "last", LayerRange(1, 2))],
    "exit": [EarlyExit(1)],
    "exit, window": [EarlyExit(2), VT_K.at(LayerRange(0, 2))],
    "random": [RandomEdges(LV_K, 3)],
}


@cache
def asked(
    name: str, answer: str = "a red ball", seed: int = 0, markers: bool = True
) -> tuple[HookedVideoLLM, VideoInputs]:
    """Encoded, so that no run pays the tower."""
    model = random_model(name)
    assert model.cfg.vision is not None
    size = model.cfg.vision.image_size
    frames = np.random.default_rng(seed).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    inputs = model.prepare(
        frames, "what is it ?", answer=answer, n_frames=4, folder_fps=2.0, markers_are_language=markers
    )
    return model, model.encoded(inputs)


def forced(model: HookedVideoLLM, prompt: VideoInputs, answer: torch.Tensor, given) -> torch.Tensor:
    """Cached generation, each token dictated: the log-probability that it had."""
    cache, found = KVCache(model.cfg.n_layers), []
    for token in answer.tolist():
        logits = model(prompt, interventions=given, kv_cache=cache, logits_to_keep=1)[0, -1, : model.cfg.n_tokens]
        found.append(logits.log_softmax(-1)[token])
        prompt = prompt.extend(torch.tensor([[token]]))
    return torch.stack(found)


@torch.no_grad()
@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("name", UNLIKE)
def test_the_likelihood_is_what_generation_gives_the_same_tokens_step_by_step(name, given):
    model, inputs = asked(name)
    _, prompt = asked(name, answer="")
    answer = inputs.tokens[0, inputs.layout.n_prompt :]
    found = answer_log_probs(model(inputs, interventions=GIVEN[given])[0], inputs, model.cfg.n_tokens)
    steps = forced(model, prompt, answer, GIVEN[given])
    assert len(found) == len(answer) >= 10 and float((found - steps).abs().max()) < EXACT
    assert abs(float(found.sum() - steps.sum())) < 10 * EXACT
    if given != "intact":
        whole = answer_log_probs(model(inputs)[0], inputs, model.cfg.n_tokens)
        assert float((whole - found).abs().max()) > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("markers", [False, True])
@pytest.mark.parametrize("name", UNLIKE)
def test_a_sweep_reads_every_token_of_answers_of_unequal_length(name, markers):
    model, first = asked(name, markers=markers)
    several = [first, *(asked(name, answer, markers=markers)[1] for answer in ("x", "no, it is a very long one"))]
    conditions = [tuple(c) for c in GIVEN.values()]
    n = model.cfg.n_tokens
    swept = sweep(model, several, conditions, read=lambda q, logits: answer_log_probs(logits, several[q], n))
    for inputs, row in zip(several, swept, strict=True):
        for given, found in zip(conditions, row, strict=True):
            alone = answer_log_probs(model(inputs, interventions=given)[0], inputs, n)
            assert float((found - alone).abs().max()) < EXACT, given
    assert [row[0].shape[-1] for row in sweep(model, several, [()])] == [model.cfg.d_vocab] * 3


@torch.no_grad()
@pytest.mark.parametrize("name", UNLIKE)
def test_cut_off_from_the_video_the_answer_is_as_likely_after_any_other(name):
    """Of LV-K by its selectors: were the answer's own rows left their view of the video, these would differ."""
    model, one = asked(name)
    _, other = asked(name, seed=1)
    before = "question+template+markers" if "marker" in one.layout.roles else "question+template"
    for given, same in ((LV_K, True), (Knockout("video", before), False)):
        x, y = (answer_log_probs(model(i, interventions=given)[0], i, model.cfg.n_tokens) for i in (one, other))
        assert float((x - y)[0].abs()) < EXACT  # read at the prompt's last position
        assert (float((x - y)[1:].abs().max()) < EXACT) == same, given


def test_an_answer_leaves_its_prompt_as_it_is_and_ends_as_the_template_does():
    net = HookedVideoLLM.from_pretrained("tiny")
    for options in ((), ("red", "blue")):
        prompt = net.prepare(None, "what color is the circle ?", options)
        inputs = net.prepare(None, "what color is the circle ?", options, answer="red")
        n = prompt.layout.n_tokens
        assert torch.equal(inputs.tokens[:, :n], prompt.tokens) and inputs.layout.n_prompt == n
        assert net.tokenizer.decode(inputs.tokens[0, n:]) == "red <eos>"
        assert str(inputs.layout.segments[-1].role) == "generated"
    assert net.tokenizer.decode(net.prepare(None, "describe").tokens[0]).split()[-2:] == ["video", "describe"]
    assert torch.equal(prompt.extend(inputs.tokens[:, n:]).tokens, inputs.tokens)
    assert prompt.extend(inputs.tokens[:, n:]).layout == inputs.layout


def test_an_answer_that_cannot_be_placed_is_refused(monkeypatch):
    net = HookedVideoLLM.from_pretrained("tiny")
    with pytest.raises(InputError, match="'a zebra' holds words that this tokenizer does not know"):
        net.prepare(None, "describe", answer="a zebra")
    with pytest.raises(InputError, match="the answer is '  '"):
        net.prepare(None, "describe", answer="  ")
    inputs = net.prepare(None, "describe")
    with pytest.raises(InputError, match="hold no answer"):
        answer_log_probs(net(inputs)[0].detach(), inputs)
    inputs = net.prepare(None, "describe", answer="red circle")
    with pytest.raises(InputError, match="3 positions of logits do not cover an answer of 3 tokens"):
        answer_log_probs(net(inputs, logits_to_keep=3)[0].detach(), inputs)
    with pytest.raises(InputError, match="not finite"):
        answer_log_probs(torch.full((4, len(VOCABULARY)), torch.nan), inputs)
    form = QuestionForm(question=" {question}")
    with pytest.raises(InputError, match=r"begins the answer itself, with ' answer', and 'red' is given"):
        net.prepare(None, "choose red ?", answer="red", form=replace(form, prefill=" answer"))
    monkeypatch.setitem(TEMPLATES, "tiny", Template("<bos> video", between="", form=form, after=" answer"))
    with pytest.raises(InputError, match=r"joins the prompt's end and the answer 'red' into one token"):
        net.prepare(None, "choose red ?", answer="red")


def test_rows_of_the_vocabulary_that_no_token_uses_have_no_probability():
    net = HookedVideoLLM.from_pretrained("tiny")
    inputs = net.prepare(None, "describe", answer="red")
    logits = torch.zeros(3, 200)
    logits[:, 150:] = 50.0
    assert torch.allclose(answer_log_probs(logits, inputs, 100), torch.full((2,), -math.log(100)))


# ---- the study -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved random model, and 4 clips with captions."""
    at = tmp_path_factory.mktemp("likelihood")
    cfg = replace(small_config("longva", n_layers=3, d_vocab=len(VOCABULARY)), prompt="tiny")
    model = HookedVideoLLM.from_config(cfg, tokenizer=tokenizer())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    model.save_pretrained(at / "model")
    make_dataset(at / "set", seed=3, split="test", n_videos=4, questions_per_video=3)
    return at


@pytest.fixture(scope="module")
def model(folder):
    return HookedVideoLLM.from_pretrained(folder / "model")


@pytest.mark.parametrize("task", ["captions", "answers"])
def test_rows_are_the_plain_runs_and_sharing_work_moves_them_by_rounding(folder, model, tmp_path, monkeypatch, task):
    monkeypatch.setattr(running, "AUDITED", 1)
    rows, study = {}, Study(scoring="likelihood", protocols=("cumulative", "all-layers", "random-control"))
    annotations, audit = folder / "set" / f"{task}.jsonl", running.Audit()
    for reuse in ("none", "layers", "layers+positions"):
        laid = plan(replace(study, reuse=reuse), model, annotations, limit=2)
        rows[reuse] = run(laid, model, tmp_path / reuse, audit=audit)
    assert audit.n > 0 and 0 < audit.largest < 1e-4
    prepared = {i.id: model.prepare(folder / "set" / i.video, i.question, answer=i.reference) for i in laid.items}
    for (item, condition, _), one, other, swept in zip(laid.tasks, *rows.values(), strict=True):
        assert one["log_probs"] == other["log_probs"]
        assert swept["log_probs"] == pytest.approx(one["log_probs"], abs=1e-5)  # float32 logits of order 1
        inputs = prepared[item.id]
        with torch.no_grad():
            plain = answer_log_probs(model(inputs, interventions=condition.interventions)[0], inputs)
        assert one["log_probs"] == pytest.approx(plain.tolist(), abs=1e-6)
        assert one["correct"] is None and one["prob"] is None and one["status"] == "ok"


def test_a_wrong_log_probability_stops_the_study(folder, model, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "AUDITED", 1)
    laid = plan(Study(scoring="likelihood", protocols=()), model, folder / "set" / "captions.jsonl", limit=2)
    exact = running.sweep
    monkeypatch.setattr(running, "sweep", lambda *a, **k: [[x + 0.01 for x in row] for row in exact(*a, **k)])
    with pytest.raises(Exception, match=r"logits of the sweep are off by .* from a plain run"):
        run(laid, model, tmp_path)


def test_a_changed_reference_or_scoring_is_another_row_and_a_missing_one_is_refused(folder, model, tmp_path):
    study = Study(scoring="likelihood", protocols=())
    items = read_items(folder / "set" / "captions.jsonl")

    def keys(items, study=study):
        write_items([replace(i, video=str(folder / "set" / i.video)) for i in items], tmp_path / "items.jsonl")
        return {t.key for _, _, t in plan(study, model, tmp_path / "items.jsonl").tasks}

    before = keys(items)
    assert not before & keys([replace(i, reference="red circle") for i in items])
    lettered = [replace(i, options=("red", "blue"), answer=0) for i in items]
    letters = Study(protocols=())
    # What is not scored against takes no part: rows of letters are the same with and without a reference.
    assert keys(lettered, letters) == keys([replace(i, reference="") for i in lettered], letters)
    with pytest.raises(DataError, match="1 items have no reference to score against"):
        keys([replace(items[0], reference=""), *items[1:]])
    with pytest.raises(DataError, match="no options to choose from"):
        keys(items, letters)


def test_an_unknown_word_is_a_failed_row_and_the_rest_is_scored(folder, model, tmp_path):
    items = [replace(i, video=str(folder / "set" / i.video)) for i in read_items(folder / "set" / "captions.jsonl")]
    write_items([replace(items[0], reference="a zebra"), *items[1:]], tmp_path / "items.jsonl")
    laid = plan(Study(scoring="likelihood", protocols=("all-layers",)), model, tmp_path / "items.jsonl")
    rows = run(laid, model, tmp_path / "out")
    assert {(r["item"], r["status"]) for r in rows} == {(i.id, "failed" if i is items[0] else "ok") for i in items}
    assert "holds words" in rows[0]["reason"]
    lines = summarise(Outcomes(laid.items, laid.conditions, rows, laid.scoring), 50)
    assert (lines[0].n, lines[0].failed) == (3, 1) and lines[0].score.value < 0


CUT = [protocols.BASELINE, *protocols.cumulative(LV_K, 4), *protocols.everywhere([LV_K, VT_K])]


def made_up(levels: dict[str, float], n: int = 40):
    """Rows of two-token references whose per-token mean is the level plus an item's own offset."""
    items = [Item(id=str(i), video=f"{i // 2}.mp4", question="q ?", reference="a b") for i in range(n)]
    own = np.random.default_rng(0).normal(size=n)
    rows = [
        {"item": it.id, "condition": c.label, "status": "ok", "correct": None, "prob": None, "margin": None}
        | {"log_probs": [levels.get(c.label, -1.0) + x - 0.5, levels.get(c.label, -1.0) + x + 0.5]}
        for it, x in zip(items, own, strict=True)
        for c in CUT
    ]
    return Outcomes(items, CUT, rows, Likelihood()), own


def test_the_table_pairs_items_so_a_constant_change_has_no_spread():
    values, own = made_up({"LV-K all layers": -4.0})
    lines = {m.condition.label: m for m in summarise(values, 200)}
    base, cut = lines["baseline"], lines["LV-K all layers"]
    assert base.score.value == pytest.approx(-1 + own.mean()) and base.score.high - base.score.low > 0.3
    assert tuple(cut.change) == pytest.approx((-3.0, -3.0, -3.0))
    assert cut.means["total"].value == pytest.approx(2 * cut.score.value) and cut.means["n_tokens"].value == 2
    assert cut.p_holm < 0.01 and lines["VT-K all layers"].mcnemar.p == 1.0 and base.mcnemar.p == 1.0
    cells = {c.name: c.cell(cut) for c in Likelihood.columns}
    assert float(cells["perplexity"]) == pytest.approx(math.exp(-cut.score.value), abs=0.005)
    assert cells["change"] == "-3.000 [-3.00, -3.00]*"


def test_findings_find_what_was_put_in():
    levels = {"LV-K after layer 0": -4.0, "LV-K all layers": -4.0, "LV-K after layer 1": -2.0, "VT-K all layers": -1.5}
    values, _ = made_up(levels)
    stages, flow = findings(values, "all", 4, 200)
    assert stages.supported and stages.sentence.startswith("LV-K in every layer costs 3.000 nats [")
    assert "needs the video up to layer 2 of 4 [2, 2]" in stages.sentence and "20 videos" in stages.sentence
    assert flow.supported and flow.sentence.startswith("LV-K in every layer costs 3.000 nats")
    nothing = findings(made_up({})[0], "all", 4, 200)
    assert [f.supported for f in nothing] == [False, False]


def test_a_table_of_likelihoods_is_never_drawn_as_accuracy():
    lines = summarise(made_up({"LV-K after layer 0": -4.0})[0], 100)
    axes = plots.layer_curve(lines, 4).axes[0]
    assert "log-likelihood" in axes.get_ylabel() and "nats" in axes.get_ylabel()
    assert list(axes.lines[0].get_ydata()) == [
        m.change.value for m in lines if m.condition.protocol == "cumulative"
    ] + [0.0]
    bars = plots.all_layers(lines).axes[0]
    assert "log-likelihood" in bars.get_ylabel() and [p.get_height() for p in bars.patches] == [
        m.score.value for m in lines if m.condition.protocol in ("baseline", "all layers")
    ]
    with pytest.raises(AttributeError, match="a summary has no 'accuracy'; its numbers are per_token, total"):
        lines[0].accuracy  # noqa: B018


# ---- the shipped model ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """The folder of the held-out clips."""
    return held_out_clips(tmp_path_factory)


@pytest.mark.usefixtures("undrawn")
def test_the_command_scores_captions_of_the_shipped_model(clips, tmp_path, capsys):
    """Its captions are all but certain, and cut off from the video all but lost: 20 clips, float32."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "videos").symlink_to(clips)
    asked = ["--limit", "20", "--out", str(out)]
    assert main(["study", "--task", "captions", "--protocol", "all-layers", *asked]) == 0
    printed = capsys.readouterr().out
    assert "perplexity" in printed and "accuracy" not in printed and "LV-K in every layer costs 4." in printed
    with (out / "summary.csv").open() as f:
        lines = {line["condition"]: line for line in csv.DictReader(f)}
    assert not {"accuracy", "ratio", "chance"} & lines["baseline"].keys()
    assert int(lines["baseline"]["n"]) == 20 and float(lines["baseline"]["per_token_low"]) > -0.2
    assert float(lines["LV-K all layers"]["change_high"]) < -4 < -0.2 < float(lines["VS-K all layers"]["change_low"])
    assert float(lines["LV-K all layers"]["sign_flip_p_holm"]) < 1e-4
    page = (out / "report.html").read_text()
    assert "nats per token of" in page and "accuracy" not in page and "chance" not in page
    assert main(["plot", str(out)]) == 0
    again = capsys.readouterr().out
    table = "questions; layers from 1"
    assert again[again.index(table) :] == printed[printed.index(table) :]
    (tmp_path / "s.toml").write_text('scoring = "likelihood"\nprotocols = ["baseline"]\nn_resamples = 50\n')
    assert main(["study", str(tmp_path / "s.toml"), *asked]) == 0
    assert "0 rows run, 20 found" in capsys.readouterr().out


def test_open_answers_that_need_no_video_are_as_likely_without_it(clips, tmp_path):
    net = HookedVideoLLM.from_pretrained("tiny")
    study = Study(scoring="likelihood", protocols=("all-layers",), knockouts=("LV-K",))
    laid = plan(study, net, clips / "answers.jsonl", limit=60)
    values = Outcomes(laid.items, laid.conditions, run(laid, net, tmp_path / "rows"), laid.scoring)
    lines = {(m.group, m.condition.label): m for m in summarise(values, 200)}
    assert abs(lines["language", "LV-K all layers"].change.value) < 0.01
    assert all(lines[g, "LV-K all layers"].change.high < -0.5 for g in ("static", "temporal", "count"))


def test_what_is_reckoned_before_a_run_counts_the_reference_too(folder, model):
    laid = plan(Study(scoring="likelihood", protocols=("all-layers",)), model, folder / "set" / "captions.jsonl")
    told = estimate(laid, model)
    prepared = [model.prepare(folder / "set" / i.video, i.question, answer=i.reference) for i in laid.items]
    lengths = [inputs.layout.n_tokens for inputs in prepared]
    assert told.tokens == (min(lengths), max(lengths)) and [w.reuse for w in told.works][-1] == "layers+positions"
    # Logits are those of the prompt's last position and of the reference, as the runs ask for them.
    one = Costs(model.cfg, prepared[0].layout)
    n = lengths[0] - prepared[0].layout.n_prompt
    assert one.of().total - one.of(logits_to_keep=1).total == n * 2 * model.cfg.lm.d_model * len(VOCABULARY)
    spans = plan(Study(scoring="grounding", protocols=()), model, folder / "set" / "grounding.jsonl")
    assert [w.reuse for w in estimate(spans, model).works] == ["none"]


def test_exits_and_windows_are_tabled_with_what_they_cost(folder, tmp_path, capsys):
    (tmp_path / "s.toml").write_text(
        f"model = {str(folder / 'model')!r}\nitems = {str(folder / 'set' / 'captions.jsonl')!r}\n"
        'scoring = "likelihood"\nprotocols = ["efficiency"]\nn_resamples = 50\n'
    )
    assert main(["study", str(tmp_path / "s.toml"), "--out", str(tmp_path / "out")]) == 0
    assert "decoder" in capsys.readouterr().out
    with (tmp_path / "out" / "summary.csv").open() as f:
        shares = [float(line["decoder_share"]) for line in csv.DictReader(f) if line["group"] == "all"]
    assert shares[0] == 1 and max(shares[1:]) <= 1 and min(shares[1:]) < 0.9


def test_a_task_is_of_the_shapes_clips_alone_and_conventions_letter_options(tmp_path, capsys):
    asked = ["--task", "captions", "--dataset", "mvbench", "--data", str(tmp_path)]
    assert main(["study", *asked, "--out", str(tmp_path / "out")]) == 2
    assert "either a task of the shapes clips or a dataset" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r'conventions letter the options; .* not "likelihood"'):
        Study(scoring="likelihood", convention="official")

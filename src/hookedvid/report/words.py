"""What claims, figures and terms mean, for readers who know neither the paper nor the tool."""

from collections.abc import Iterable, Mapping, Sequence

from hookedvid.study.results.evidence import MIN_ITEMS, MIN_VIDEOS, Finding, on
from hookedvid.study.results.summary import Summary
from hookedvid.study.run.manifest import Manifest

# What a law says where the data support it, by how its name begins.
CLAIMS = {
    "two stages": "The text needs the video in the first layers only",
    "which flow dominates": "One kind of link carries more than the others",
    "critical conditions": "Conditions can be named that cost something",
    "critical windows": "There are layers where cutting these links for a few layers already costs something",
    "these edges or fewer edges": "What matters is which links are cut, not only how many",
    "cheapest inference": "The video can be dropped early, or in some layers, and the answers stay",
    "which heads matter": "Single attention heads can be named that the answers need",
    "is the effect of ": "The effect of softer cuts is graded: {}",
    "cheapest pruning": "Video tokens can be left out and the answers stay ({})",
    "a rule beats random": "It matters which video tokens are kept ({})",
    "adaptive beats fixed": "Leaving the video as soon as an item allows it beats one layer for all",
    "what a clip ": "A changed clip loses answers ({})",
    "where the answer is held": "Places can be named that hold the answer",
    "gradients rank ": "Gradients of the intact model tell which {} matter, without a run for each",
    "any law": "There is enough to say anything",
}
CAPTIONS = {
    "cumulative": (
        "What is left of the score when text may no longer look at the video after layer i: far left it "
        "never may, far right it always may. From where the line reaches the level of the intact model "
        "on, later layers do not need the video. One line a family of questions; bands are 95 % "
        "intervals."
    ),
    "all-layers": (
        "The score of each family of questions, intact and with one kind of link cut in every layer. "
        "Whiskers are 95 % intervals; dotted lines, where there are any, are what knowing nothing scores."
    ),
    "windows": (
        "The score when links are cut in a few neighbouring layers alone, by the last of them. Where a "
        "line dips, these layers need these links. Whiskers are 95 % intervals."
    ),
    "windows-by-family": "The same for the first of these links, family by family: what is left of the intact score.",
    "pareto": (
        "What leaving the video out in some layers saves and costs. The line joins what nothing else "
        "beats; the star is the cheapest that keeps enough on other videos. Whiskers are 95 % intervals."
    ),
    "pareto-by-family": "The same, family by family, as a share of the intact score.",
    "heads": (
        "What cutting one attention head of one layer does. Red loses, blue gains; outlined cells hold "
        "after correction for all cells."
    ),
    "dose": (
        "What softer cuts cost, from the intact model (weight 1) to the whole cut (0). Whiskers are 95 % intervals."
    ),
    "pruning": (
        "What is left of the score when only a share of the video's tokens is kept, by the rule that "
        "chooses them. Whiskers are 95 % intervals."
    ),
    "adaptive-exit": "What leaving the video at a layer of each item's own saves and keeps, against one layer for all.",
    "counterfactual": (
        "What showing another clip in place of the item's own does, by family. Red loses; outlined cells "
        "hold after correction for all cells."
    ),
    "verdicts": (
        "What each condition takes off the score, with its 95 % confidence sequence at the number of videos after "
        "which it was stopped: critical ones are shown to cost something, the others to cost less than the dotted "
        "line; open ones are neither."
    ),
    "tracing": (
        "How much of what noise took comes back when one place holds what it held in the intact model: 0 "
        "nothing, 1 all. Outlined cells are shown to bring back half."
    ),
    "attribution": (
        "What cutting one place, or giving it what it holds on another video, loses against what gradients say it "
        "would: a point for each place, the mean over questions. On the dashed line gradients would be right, far from "
        "it wrong."
    ),
}
# Terms as they stand in labels, columns and sentences; those that do not occur are left out.
GLOSSARY = {
    "layer": "The model works through its prompt in layers, counted from 1. In each, positions look at earlier ones "
    "by attention: these are the links that are cut.",
    "baseline": "The model as it is, with nothing cut.",
    "LV-K": "Language-to-video knockout: the text after the video (question, options, answer) may not look at it.",
    "VT-K": "Video-temporal knockout: no frame may look at another frame.",
    "VS-K": "Video-spatial knockout: no part of a frame may look at other parts of the same frame.",
    "→": "a→b: positions of b may not look at those of a.",
    "all layers": "The links are cut in every layer.",
    "after layer": "The links are left whole up to this layer and cut in all later ones.",
    "windows": "LV-K 3–4: the links are cut in layers 3 to 4 alone.",
    "random like": "As many links are cut as by the knockout that is named, drawn at random.",
    "exit after": "The video's tokens leave the model after this layer.",
    "failed": "Questions that could not be answered, such as of a video that cannot be read; they are in no score.",
    "accuracy": "Share of questions that are answered right.",
    "ratio": "The score over the intact model's.",
    "above chance": "The same, counted from what guessing scores.",
    "p(right)": "The probability that the model gives to the right option, on average.",
    "decoder": "Operations that are left of the intact model's, in all its layers.",
    "attention": "Operations of attention alone that are left of the intact model's.",
    "margin": "How far the right option's logit is above the largest of the others.",
    "recovery": "The share of what noise took that comes back: 0 nothing, 1 all.",
    "streams": "What positions hold after a layer, which the next one reads.",
    "attn outputs": "What attention adds to the stream in a layer.",
    "MLP outputs": "What the rest of a layer adds to the stream.",
    "rank r": "Rank correlation: 1 where gradients order places as runs do, 0 where by chance, -1 the other way round.",
    "change": "The score less the intact model's.",
    "points": "A difference of two percentages.",
    "Holm": "A correction of p-values for how many were tested at once.",
}


def claim(finding: Finding) -> str:
    """What a finding is about, as a claim that data support or do not."""
    for name, text in CLAIMS.items():
        if finding.law.startswith(name):
            rest = finding.law.removeprefix(name).strip()
            return text.format(rest.removesuffix(" graded") if name.startswith("is the") else rest)
    return finding.law


def opening(run: Manifest, tables: Mapping[str, Sequence[Summary]], laws: Sequence[Finding], main: str) -> list[str]:
    """What was asked of which model, what was found, how sure that is: a paragraph each.

    Args:
        run: What was asked.
        tables: Summaries by group, each group's baseline first.
        laws: What the rows say of the main group.
        main: The main group's name.
    """
    every, base = tables["all"][0], tables[main][0]
    scoring, n = base.scoring, len(tables["all"]) - 1
    asked = (
        f"The model {run.settings['model_name']} was asked {_count(len(run.items), 'question')} about "
        f"{_count(len({i.video for i in run.items}), 'video')}, of which it sees "
        f"{_count(run.settings['n_frames'], 'frame')} each: as it is (the baseline), and under "
        f"{_count(n, 'other condition')}, each of which cuts or changes something inside it or in "
        "the clip. What an answer loses by that, it had rested on."
    )
    if failed := every.failed:
        asked += f" {failed} of the baseline's answers failed and are in no score."
    whose = "the questions that need the video" if main == "video" else "all questions"
    score = f"{scoring.brief(base.score.value)} {scoring.unit}"
    if scoring.level_name:
        score += f" ({scoring.level_name}: {scoring.brief(base.level)} {scoring.unit})"
    found = f"On {whose} ({on(base.n, base.videos)}), the intact model's {scoring.title} is {score}. "
    supported = [claim(f) for f in laws if f.supported]
    if len(laws) == 1:
        found += f"The one claim that was tested is {'' if supported else 'not '}supported: {_inner(claim(laws[0]))}."
    elif supported:
        verb = "is" if len(supported) == 1 else "are"
        found += f"{len(supported)} of {len(laws)} claims {verb} supported: {'; '.join(map(_inner, supported))}."
    else:
        found += f"None of {len(laws)} claims is supported."
    sure = (
        "Brackets hold 95 % intervals, which say how far a number would move with other videos of this kind. A claim "
        "is called supported only if its test holds after correction for all that was tested, its interval says so "
        f"too, and it rests on at least {MIN_ITEMS} questions and {MIN_VIDEOS} videos. That one is not supported does "
        "not say that its opposite is true."
    )
    cut = glossary(f.sentence for f in laws)
    names = [f"{name} is the {_inner(cut[name])}" for name in ("LV-K", "VT-K", "VS-K") if name in cut]
    return [asked, found, *([" ".join(names)] if names else []), sure]


def glossary(texts: Iterable[str]) -> dict[str, str]:
    """The terms that occur in some texts."""
    said = "\n".join(texts)
    return {term: meaning for term, meaning in GLOSSARY.items() if term in said}


def _count(n: int, name: str) -> str:
    return f"{n} {name}{'s' * (n != 1)}"


def _inner(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]

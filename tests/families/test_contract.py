"""What every family promises: small, prompted, converted both ways, published, compared, and known by its file alone.

What its hook points promise beyond one run of its own prompt stands in tests/model/test_hook_contract.py, which runs
over the same families; that its golden cases pass, in test_golden.py.
"""

import ast
import importlib
import pkgutil
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import hookedvid.families
from golden_cases import CASES, converted
from hookedvid import HookedVideoLLM, VideoInputs, VideoLLMConfig
from hookedvid.checkpoints.byte_tokenizer import N_TOKENS, byte_tokenizer
from hookedvid.checkpoints.locate import repo_of
from hookedvid.checkpoints.tokenizer_files import check_tokens
from hookedvid.conversion.lines import Ignored
from hookedvid.conversion.rules import expanded, names_of, to_ours, to_theirs
from hookedvid.errors import ConfigError, InputError
from hookedvid.families.family import Layout
from hookedvid.families.prompts import NO_INSTRUCTION, Timing, pieces, special_strings
from hookedvid.families.registry import (
    ARCHITECTURES,
    FAMILIES,
    PUBLISHED,
    TEMPLATES,
    TIME_INSTRUCTIONS,
    extras,
    family,
    named_in,
    of_repo,
    small_config,
    template,
)
from hookedvid.nn.parts import parameter_shapes
from hookedvid.values.config import LIMITS
from hookedvid.values.processor import NAMES
from hookedvid.values.serial import override
from hookedvid.video.samplers import SAMPLERS

SOURCE = Path(hookedvid.families.__file__).parents[1]
QUESTION, OPTIONS, N_FRAMES = "What moves?", ("a car", "a dog"), 4
RATE = 2.0  # frames a second of a video without a file
each = pytest.mark.parametrize("name", FAMILIES)


@cache
def model(name: str) -> HookedVideoLLM:
    """A small model whose tokenizer has the family's special tokens."""
    cfg = small_config(name)
    tokenizer = byte_tokenizer(cfg.d_vocab)
    tokenizer.add_tokens(list(special_strings(template(cfg.prompt))), special_tokens=True)
    assert N_TOKENS <= len(tokenizer) <= cfg.d_vocab
    return HookedVideoLLM.from_config(cfg, tokenizer=tokenizer)


def asked(name: str) -> VideoInputs:
    side = model(name).cfg.vision.image_size
    video = np.random.default_rng(0).integers(0, 256, (N_FRAMES, side, side, 3), np.uint8)
    return model(name).prepare(video, QUESTION, OPTIONS, n_frames=N_FRAMES, sampler="linspace", folder_fps=RATE)


# ---- its parts ---------------------------------------------------------------------------------------------


@each
def test_its_small_config_is_small_and_survives_json(name):
    cfg = small_config(name)
    again = VideoLLMConfig.from_json(cfg.to_json())
    assert again == cfg and hash(again) == hash(cfg) and cfg.family == name
    assert sum(p.numel() for p in HookedVideoLLM.from_config(cfg).parameters()) < 300_000


@each
def test_its_sizes_come_near_no_bound(name):
    for size in ("n_layers", "d_model", "n_heads", "d_mlp", "image_size"):
        assert getattr(FAMILIES[name].tower, size) * 8 <= LIMITS[size]
    assert all(p.frames * 8 <= LIMITS["n_frames"] for p in FAMILIES[name].published.values())


@torch.no_grad()
@each
def test_each_hook_point_fires_once_for_its_own_prompt(name):
    fired = dict.fromkeys(model(name).hook_dict, 0)

    def count(value, hook):
        fired[hook.name] += 1

    model(name).run_with_hooks(asked(name), fwd_hooks=[(point, count) for point in fired])
    assert set(fired.values()) == {1}


# ---- its prompt --------------------------------------------------------------------------------------------


@each
def test_its_prompt_holds_its_special_tokens_as_one_each(name):
    form, tokenizer = template(FAMILIES[name].prompt), model(name).tokenizer
    special = special_strings(form)
    assert special and not check_tokens(tokenizer, special)
    inputs = asked(name)
    timing = Timing(NO_INSTRUCTION, N_FRAMES / RATE, tuple(i / RATE for i in range(N_FRAMES)))
    parts = pieces(form, QUESTION, OPTIONS, N_FRAMES, timing, patch_frames=model(name).cfg.patch_frames)
    text = "".join(p.text for p in parts)
    ids = inputs.tokens[0].tolist()
    for token in special:
        assert ids.count(tokenizer.convert_tokens_to_ids(token)) == text.count(token), token
    assert tokenizer.decode([i for i in ids if i >= 0]) == text
    assert len(inputs.layout.positions("patches")) % len(inputs.layout.steps) == 0


@each
def test_its_texts_are_those_of_their_names(name):
    """Two families may share a name only by sharing the text."""
    assert FAMILIES[name].prompt in FAMILIES[name].templates
    assert all(TEMPLATES[n] is t for n, t in FAMILIES[name].templates.items())
    assert all(TIME_INSTRUCTIONS[n] is t for n, t in FAMILIES[name].time_instructions.items())


@each
def test_its_samplers_exist(name):
    used = {FAMILIES[name].sampler, *(w.sampler for w in FAMILIES[name].wrappers.values())}
    assert used <= {*SAMPLERS, None} and FAMILIES[name].sampler


# ---- its checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "at"), [(f.name, i) for f in FAMILIES.values() for i in range(len(f.layouts))])
def test_its_tensors_go_there_and_back(name, at):
    layout, cfg = FAMILIES[name].layouts[at], small_config(name)
    assert ARCHITECTURES[layout.architecture].transformers == layout.transformers
    shapes, table = parameter_shapes(cfg), layout.table(cfg, [])
    generator = torch.Generator().manual_seed(0)
    ours = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
    theirs = to_theirs(ours, table)
    again = to_ours(theirs, table, shapes, name)
    assert again.keys() == ours.keys() and all(torch.equal(again[n], ours[n]) for n in ours)
    looks = layout.looks(FAMILIES[name], {n: t.shape for n, t in theirs.items()})
    assert layout.looks is Layout.looks or looks is not None


@each
def test_an_adapter_reaches_every_weight_by_names_of_one_meaning(name):
    shapes = parameter_shapes(small_config(name))
    lines = [x for x in expanded(FAMILIES[name].adapter(small_config(name)), shapes) if not isinstance(x, Ignored)]
    meant: dict[str, tuple[str, ...]] = {}
    for line in lines:
        assert meant.setdefault(line.theirs, names_of(line)) == names_of(line)
    assert {n for line in lines for n in names_of(line)} == shapes.keys()


@each
def test_its_published_names_resolve(name):
    assert named_in(f"somebody/{name}-mine") == name and family(name) is FAMILIES[name]
    for public, p in FAMILIES[name].published.items():
        assert PUBLISHED[public] is p and repo_of(public) == p.repo
        assert of_repo(p.repo.upper()) == (FAMILIES[name], p)
        assert override(small_config(name), p.overrides, ConfigError).family == name
        assert p.overrides.get("n_frames", FAMILIES[name].n_frames) == p.frames


def test_no_two_families_publish_under_one_name():
    assert len(PUBLISHED) == sum(len(f.published) for f in FAMILIES.values())
    repos = [p.repo.lower() for p in PUBLISHED.values()]
    assert len(repos) == len(set(repos))


@pytest.mark.skipif(not CASES, reason="golden cases are not in this checkout")
@each
def test_a_golden_case_is_of_it(name):
    """Which test_golden.py runs stage by stage, and exports."""
    configs = (VideoLLMConfig.from_json((converted(c) / "config.json").read_text(encoding="utf-8")) for c in CASES)
    assert name in {cfg.family for cfg in configs}


# ---- known by its file alone -------------------------------------------------------------------------------


def own_files() -> dict[Path, str]:
    """The families' files, with the name that each states."""
    package = hookedvid.families
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    return {Path(str(m.__file__)): m.FAMILY.name for m in modules if hasattr(m, "FAMILY")}


def texts(path: Path) -> list[str]:
    """The strings of a source file that are no documentation."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    said = {id(n.value) for n in nodes if isinstance(n, ast.Expr)}
    return [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in said]


def test_no_file_but_its_own_says_a_familys_name():
    own = own_files()
    named = re.compile(rf"\b({'|'.join(map(re.escape, FAMILIES))})\b")
    assert sorted(own.values()) == sorted(FAMILIES)
    for path in SOURCE.rglob("*.py"):
        if path in own:
            assert not {t.lower() for t in texts(path)} & (FAMILIES.keys() - {own[path]}), path
        else:
            # A sampler is called after whose rule it is.
            assert not [t for t in texts(path) if t not in SAMPLERS and named.search(t.lower())], path


@each
def test_inputs_of_tensors_take_what_its_processor_gives_and_nothing_else(name):
    m, made = model(name), FAMILIES[name].processor
    if made is None:
        assert extras(m.cfg) == ()
    else:
        given = m.process(np.random.default_rng(0).integers(0, 256, (4, 60, 90, 3), np.uint8), fps=RATE)
        pixels = given.pop(made.pixels)
        of_ids = {"attention_mask": [[1, 1, 1]], "mm_token_type_ids": [[0, 2, 0]], "video_metadata": [object()]}
        inputs = m.inputs_from_tensors([[5, -200, 6]], pixels, **given, **of_ids)
        assert inputs.layout.n_frames == 4 and set(given) == set(extras(m.cfg))
    for other in {*NAMES, "image_grid_thw"} - set(extras(m.cfg)):
        with pytest.raises(InputError, match=rf"knows nothing of \['{other}'\] for this model"):
            m.inputs_from_tensors([[5, -200, 6]], torch.zeros(1, 3, 28, 28), **{other: [1]})

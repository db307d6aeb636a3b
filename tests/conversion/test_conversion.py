"""Rename tables: both directions, bit for bit, nothing lost, and every misfit said at once."""

import re
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from hf_models import SIX_BILLION, decoder, decoder_config, next_video, onevision, perturbed, tower, tower_config
from hookedvid import HookedVideoLLM
from hookedvid.checkpoints import layouts
from hookedvid.conversion import hf_configs, tables
from hookedvid.conversion.lines import Fused, Ignored, Line, Rule
from hookedvid.conversion.rules import to_ours, to_theirs
from hookedvid.errors import ConversionError
from hookedvid.values.config import DecoderConfig, ProjectorConfig, VideoLLMConfig, VisionConfig

DECODER = DecoderConfig(n_layers=2, d_model=24, n_heads=6, n_kv_heads=2, d_head=4, d_mlp=20, d_vocab=11)
VISION = VisionConfig(n_layers=2, d_model=24, n_heads=3, d_mlp=20, image_size=28, patch_size=14, cls_token=True)
CLIP = replace(VISION, pre_norm=True, patch_bias=False)
SIGLIP = replace(VISION, cls_token=False)
INTERN = replace(VISION, layer_scale=True)
PROJECTOR = ProjectorConfig(d_in=24, d_out=24)
INTERN_PROJECTOR = replace(PROJECTOR, shuffle=2, d_in=96, input_norm=True)


class Case(NamedTuple):
    """A part's table with a config of a model that is that part alone."""

    table: list[Line]
    decoder: DecoderConfig | None = None
    vision: VisionConfig | None = None
    projector: ProjectorConfig | None = None

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Names and shapes of our parameters that this table must fill."""
        whole = VideoLLMConfig(
            family="test",
            decoder=self.decoder or (DECODER if self.projector else None),
            vision=self.vision or (VISION if self.projector else None),
            projector=self.projector,
        )
        parts = [p for p, c in (("vision.", self.vision), ("projector.", self.projector)) if c]
        named = HookedVideoLLM(whole).named_parameters()
        return {
            n: p.shape
            for n, p in named
            if (n.startswith(tuple(parts)) if parts else not n.startswith(("vision.", "projector.")))
        }


def llama(**given: Any) -> Case:
    cfg = replace(DECODER, **given)
    return Case(tables.llama(cfg), decoder=cfg)


def mlp2x(newline: bool) -> Case:
    table = tables.mlp2x("mm_projector.0", "mm_projector.2", "image_newline", newline)
    return Case(table, projector=replace(PROJECTOR, newline="once" if newline else "none"))


CASES = {
    "llama": llama(),
    "llama-biased": llama(qkv_bias=True, o_bias=True),
    "qwen2": llama(qkv_bias=True),
    "qwen2-tied": llama(qkv_bias=True, tied=True),
    "qwen3": llama(qk_norm=True),
    "internlm2": Case(tables.internlm2(DECODER), decoder=DECODER),
    "clip": Case(tables.clip_like(CLIP, "tower."), vision=CLIP),
    "siglip": Case(tables.clip_like(SIGLIP, ""), vision=SIGLIP),
    "siglip-normed": Case(tables.clip_like(n := replace(SIGLIP, final_norm=True), ""), vision=n),
    "internvit": Case(tables.internvit(INTERN), vision=INTERN),
    "internvit-unbiased": Case(tables.internvit(b := replace(INTERN, qkv_bias=False)), vision=b),
    "internvit-6b": Case(tables.internvit(six := replace(b, norm="rms", qk_norm=True)), vision=six),
    "internvl": Case(tables.internvl_vision(INTERN), vision=INTERN),
    "internvl-6b": Case(tables.internvl_vision(six), vision=six),
    "internvl-normed": Case(tables.internvl_vision(m := replace(b, final_norm=True)), vision=m),
    "open_clip": Case(tables.open_clip(CLIP), vision=CLIP),
    "mlp2x": mlp2x(False),
    "mlp2x-newline": mlp2x(True),
    "intern-projector": Case(tables.intern_projector(), projector=INTERN_PROJECTOR),
}
by_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def random_tensors(shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(s, generator=generator) for n, s in shapes.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@by_case
def test_there_and_back_is_the_identity_in_both_directions(case):
    ours = random_tensors(case.shapes)
    theirs = to_theirs(ours, case.table)
    assert same(to_ours(theirs, case.table, case.shapes, "ours"), ours)
    others = random_tensors({n: t.shape for n, t in theirs.items()})
    assert same(to_theirs(to_ours(others, case.table, case.shapes, "theirs"), case.table), others)


@by_case
def test_a_table_names_each_of_our_parameters_exactly_once(case):
    names = []
    for line in case.table:
        if not isinstance(line, Ignored):
            for ours in (line.ours,) if isinstance(line, Rule) else line.ours:
                names += [ours.format(i=i) for i in range(2)] if "{i}" in ours else [ours]
    assert sorted(names) == sorted(case.shapes)


@by_case
def test_a_table_is_injective(case):
    theirs = [line.theirs for line in case.table if not isinstance(line, Ignored)]
    assert len(set(theirs)) == len(theirs)
    filled = to_theirs(random_tensors(case.shapes), case.table)
    assert sum(t.numel() for t in filled.values()) == sum(s.numel() for s in case.shapes.values())


@by_case
def test_whatever_is_ignored_has_a_reason(case):
    assert all(len(line.reason.split()) >= 3 for line in case.table if isinstance(line, Ignored))


HF_MODELS = {
    "qwen2": lambda: decoder("qwen2"),
    "qwen3": lambda: decoder("qwen3"),
    "llama": lambda: decoder("llama", attention_bias=True),
    "tied": lambda: decoder("qwen2", tie_word_embeddings=True),
    "clip": lambda: tower("clip"),
    "siglip": lambda: tower("siglip"),
    "internvl": lambda: tower("internvl", attention_bias=True),
    "internvl-6b": lambda: tower("internvl", **SIX_BILLION),
    "internvl-normed": lambda: tower("internvl", use_mean_pooling=False),
    "onevision": onevision,
    "next_video": next_video,
}


@pytest.mark.parametrize("make", HF_MODELS.values(), ids=HF_MODELS)
def test_export_gives_transformers_its_own_tensors_back(make):
    """The tables' names are transformers' own, and only what a table ignores is missing from the export."""
    hf = make()
    theirs = hf.state_dict()
    table = layouts.read_transformers(hf.config, type(hf).__name__, theirs).table
    exported = to_theirs(dict(HookedVideoLLM.from_transformers(hf).named_parameters()), table)
    assert exported and all(torch.equal(t, theirs[n]) for n, t in exported.items())
    ignored = [line.theirs for line in table if isinstance(line, Ignored)]
    assert all(any(re.fullmatch(p, n) for p in ignored) for n in theirs.keys() - exported.keys())


def test_fused_keys_follow_their_key_value_head():
    line = Fused("wqkv", ("q", "k", "v"), parts=(2, 1, 1), groups=3)
    rows = torch.arange(3 * 4 * 5).float()[:, None]  # three heads of [q q k v], each of five rows
    shapes = {"q": torch.Size([30, 1]), "k": torch.Size([15, 1]), "v": torch.Size([15, 1])}
    ours = to_ours({"wqkv": rows}, [line], shapes, "rows")
    assert ours["q"][:, 0].tolist() == [*range(10), *range(20, 30), *range(40, 50)]
    assert ours["k"][:, 0].tolist() == [*range(10, 15), *range(30, 35), *range(50, 55)]
    assert ours["v"][:, 0].tolist() == [*range(15, 20), *range(35, 40), *range(55, 60)]


def test_every_misfit_is_listed_at_once():
    case = CASES["llama"]
    theirs = to_theirs(random_tensors(case.shapes), case.table)
    theirs["model.layers.1.mlp.up_projection.weight"] = theirs.pop("model.layers.1.mlp.up_proj.weight")
    theirs["model.norm.weight"] = torch.zeros(25)
    theirs["score.weight"] = torch.zeros(2, 3)
    with pytest.raises(ConversionError) as e:
        to_ours(theirs, case.table, case.shapes, "a file")
    said = str(e.value)
    assert said.startswith("the tensors of a file do not fit its config: ")
    assert "missing 'model.layers.1.mlp.up_proj.weight'" in said
    assert (
        "left over 'model.layers.1.mlp.up_projection.weight' [20, 24] (is it 'model.layers.1.mlp.up_proj.weight'?)"
        in said
    )
    assert "left over 'score.weight' [2, 3]" in said
    assert "'ln_final.weight' should be [24], got [25]" in said


@pytest.mark.parametrize(
    ("case", "name", "shape", "said"),
    [
        (
            "internlm2",
            "language_model.model.layers.0.attention.wqkv.weight",
            (39, 24),
            "[39, 24], whose rows are no multiple of 10",
        ),
        ("internvit", "vision_model.embeddings.class_embedding", (2, 1, 24), "[2, 1, 24], not [1, 1, d]"),
        ("internvit", "vision_model.encoder.layers.1.attn.qkv.bias", (70,), "[70], whose rows are no multiple of 3"),
        ("open_clip", "visual.transformer.resblocks.0.attn.in_proj_weight", (71, 24), "[71, 24], whose rows"),
    ],
)
def test_a_fused_or_reshaped_tensor_of_the_wrong_shape_is_named_too(case, name, shape, said):
    theirs = to_theirs(random_tensors(CASES[case].shapes), CASES[case].table)
    theirs |= {name: torch.zeros(shape), "stray": torch.zeros(1)}
    with pytest.raises(ConversionError) as e:
        to_ours(theirs, CASES[case].table, CASES[case].shapes, "a file")
    assert f"{name!r} is {said}" in str(e.value) and "left over 'stray'" in str(e.value)


def test_layers_that_misfit_alike_are_one_entry():
    case = CASES["llama"]
    with pytest.raises(ConversionError, match=r"missing 'model.layers.\{0..1\}.mlp.up_proj.weight'; missing") as e:
        to_ours({}, case.table, case.shapes, "an empty file")
    assert str(e.value).count("missing") == 12


def test_export_refuses_tensors_no_line_names():
    ours = random_tensors(CASES["mlp2x"].shapes) | {"projector.stray": torch.zeros(1)}
    with pytest.raises(ConversionError, match=r"no line of the table exports \['projector.stray'\]"):
        to_theirs(ours, CASES["mlp2x"].table)


REFUSED = [
    (hf_configs.read_decoder, decoder_config("llama", mlp_bias=True), "mlp_bias = True"),
    (hf_configs.read_decoder, decoder_config("qwen2", use_sliding_window=True), "use_sliding_window = True"),
    (hf_configs.read_decoder, decoder_config("llama", hidden_act="relu"), "hidden_act = 'relu'"),
    (hf_configs.read_decoder, decoder_config("llama", logit_scale=2.0), "logit_scale = 2.0 is set and nothing here"),
    (
        hf_configs.read_decoder,
        decoder_config("llama", rope_parameters={"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}),
        "rope 'yarn'",
    ),
    (hf_configs.read_tower, tower_config("internvl", use_qk_norm=True, layer_norm_eps=1e-5), "layer_norm_eps = 1e-05"),
    (hf_configs.read_tower, tower_config("internvl", norm_type="batch_norm"), "norm_type = 'batch_norm'"),
    (
        hf_configs.read_tower,
        tower_config("internvl", norm_type="rms_norm", use_mean_pooling=False),
        "use_mean_pooling = False",
    ),
    (hf_configs.read_tower, tower_config("clip", num_channels=1), "num_channels = 1"),
    (hf_configs.read_tower, tower_config("siglip", hidden_act="relu"), "hidden_act = 'relu'"),
    (hf_configs.read_tower, tower_config("internvl", image_size=[70, 84]), r"image_size = .70, 84. is not square"),
]


@pytest.mark.parametrize(("read", "config", "said"), REFUSED, ids=[r[2][:20] for r in REFUSED])
def test_config_fields_without_a_place_here_are_refused_by_name(read, config, said):
    with pytest.raises(ConversionError, match=f"{type(config).__name__}: .*{said}"):
        read(config)


def test_a_config_changed_in_memory_to_a_sliding_window_is_refused():
    hf = decoder("qwen2")
    hf.config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    hf.config.sliding_window = 4
    with pytest.raises(ConversionError, match=r"layer_types holds .'sliding_attention'.: only full attention"):
        HookedVideoLLM.from_transformers(hf)
    hf.config.layer_types = ["full_attention"] * 3  # as transformers writes those that do not slide
    assert HookedVideoLLM.from_transformers(hf).cfg.n_layers == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"vision_feature_layer": [-1, -2]}, "features of several layers are not supported"),
        ({"multimodal_projector_bias": False}, "multimodal_projector_bias = False is not supported"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act = 'relu' is not supported"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy = 'full' is not supported"),
        ({"spatial_pool_mode": "conv"}, "spatial_pool_mode = 'conv' is not supported"),
    ],
)
def test_llava_fields_without_a_place_here_are_refused_by_name(given, said):
    config = next_video().config
    for name, value in given.items():
        setattr(config, name, value)
    with pytest.raises(ConversionError, match=said):
        layouts.read_transformers(config, "LlavaNextVideoForConditionalGeneration", {})


def test_several_unsupported_fields_are_listed_together():
    config = decoder_config("llama", mlp_bias=True, hidden_act="relu", logit_scale=2.0)
    with pytest.raises(ConversionError, match=r"mlp_bias = True.*hidden_act = 'relu'.*logit_scale = 2.0"):
        hf_configs.read_decoder(config)


def test_a_class_without_a_reader_is_refused_with_those_that_have_one():
    class Qwen9ForCausalLM(nn.Module):
        pass

    with pytest.raises(
        ConversionError, match=r"cannot load a Qwen9ForCausalLM; nearest: 'Qwen3ForCausalLM'.*Supported"
    ):
        HookedVideoLLM.from_transformers(Qwen9ForCausalLM())


def test_loading_copies_so_that_later_edits_stay_apart():
    hf = perturbed(decoder())
    model = HookedVideoLLM.from_transformers(hf)
    before = model.embed.weight.clone()
    with torch.no_grad():
        hf.model.embed_tokens.weight.add_(1.0)
    assert torch.equal(model.embed.weight, before)

"""open_clip's visual towers in our model: its loader, its preprocessing figures, its blocks' outputs."""

import json

import numpy as np
import open_clip
import pytest
import torch
from open_clip import factory
from PIL import Image
from torch import nn

from hookedvid import HookedVideoLLM
from hookedvid.errors import ConversionError
from hookedvid.video.transforms import preprocess

pytestmark = pytest.mark.shapes_unchecked

TEXT = {"context_length": 8, "vocab_size": 16, "width": 32, "heads": 2, "layers": 1}
SMALL = {"image_size": 64, "layers": 11, "width": 64, "head_width": 16, "patch_size": 14}
CREATE = open_clip.create_model
VIT_L = [(n, t) for n, t in open_clip.list_pretrained() if n.removesuffix("-quickgelu") in ("ViT-L-14", "ViT-L-14-336")]


def perturb(visual: nn.Module, scale: float) -> None:
    """Noise on biases and norms, which start at 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in visual.parameters():
            if p.ndim == 1:
                p.add_(torch.randn(p.shape, generator=generator) * scale)


def intercepted(monkeypatch, **overrides) -> list:
    """Makes create_model build random weights with parts of its config replaced; the models, as they are made."""
    made: list = []

    def create(name, **kwargs):
        torch.manual_seed(0)
        clip = CREATE(name, **kwargs, load_weights=False, **overrides)
        perturb(clip.visual, 0.1)
        made.append(clip)
        return clip

    monkeypatch.setattr(open_clip, "create_model", create)
    monkeypatch.setattr(factory, "download_pretrained", lambda cfg, cache_dir=None: "never read")
    return made


def block_outputs(visual: nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    """What open_clip's own blocks put out."""
    outputs: list[torch.Tensor] = []
    handles = [b.register_forward_hook(lambda _m, _i, out: outputs.append(out)) for b in visual.transformer.resblocks]
    with torch.no_grad():
        visual.eval()(pixels)
    for handle in handles:
        handle.remove()
    return outputs


def worst_block(model: HookedVideoLLM, visual: nn.Module, pixels: torch.Tensor) -> float:
    theirs = block_outputs(visual, pixels)
    with torch.no_grad():
        _, cache = model.run_with_cache(pixels, names_filter="vision.resid_post")
    assert len(cache) == len(theirs) == model.cfg.vision.n_layers
    return max((cache[f"vision.blocks.{i}.hook_resid_post"] - t).abs().max().item() for i, t in enumerate(theirs))


@pytest.fixture
def register(tmp_path):
    """Adds a model of our own making to open_clip's; returns its name."""

    def add(name: str, top: dict | None = None, **vision) -> str:
        config = {"embed_dim": 32, "vision_cfg": {**SMALL, **vision}, "text_cfg": TEXT, **(top or {})}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(config))
        open_clip.add_model_config(path)
        return name

    return add


def test_vit_l_14_336_at_full_width_agrees_on_every_block(monkeypatch):
    """In 2 of its 24 blocks; numbers of two digits are those of smaller ones."""
    torch.manual_seed(0)
    published = open_clip.get_model_config("ViT-L-14-336")["vision_cfg"]
    clip = CREATE("ViT-L-14-336", text_cfg=TEXT, vision_cfg=published | {"layers": 2})
    perturb(clip.visual, 0.1)
    monkeypatch.setattr(open_clip, "create_model", lambda name, **kwargs: clip)
    model = HookedVideoLLM.from_open_clip("ViT-L-14-336")
    vision = model.cfg.vision
    assert (vision.n_layers, vision.d_model, vision.n_heads, vision.d_mlp) == (2, 1024, 16, 4096)
    assert (vision.image_size, vision.patch_size, vision.grid) == (336, 14, 24)
    pixels = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    # open_clip multiplies by the fused [Q; K; V], we by each of the three: sums of 1024 terms in another order,
    # twice over, and those of the MLP. 9.5e-7 was measured after the last block.
    assert worst_block(model, clip.visual, pixels) <= 1e-5


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("quick", [False, True])
def test_either_activation_and_odd_sizes_agree_on_every_block(register, monkeypatch, quick, frames):
    name = register(f"small-{quick}-{frames}", {"quick_gelu": quick})
    made = intercepted(monkeypatch)
    model = HookedVideoLLM.from_open_clip(name)
    assert model.cfg.vision.act == ("quick_gelu" if quick else "gelu")
    assert model.cfg.vision.grid == 4  # 64 pixels hold four patches of 14, and 8 pixels nobody reads
    pixels = torch.randn(frames, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert worst_block(model, made[0].visual, pixels) <= 1e-5  # the sums' order, as above


def test_a_weights_file_goes_through_open_clips_own_loader(register, tmp_path):
    name = register("small-file")
    torch.manual_seed(3)
    clip = CREATE(name)
    perturb(clip.visual, 0.3)
    torch.save(clip.state_dict(), tmp_path / "weights.pt")
    model = HookedVideoLLM.from_open_clip(name, str(tmp_path / "weights.pt"))
    assert torch.equal(
        model.vision.blocks[1].attn.k.weight, clip.visual.transformer.resblocks[1].attn.in_proj_weight[64:128]
    )
    assert worst_block(model, clip.visual, torch.randn(1, 3, 64, 64)) <= 1e-5


@pytest.mark.parametrize(("name", "tag"), VIT_L)
def test_every_pretrained_tag_brings_its_activation_and_preprocessing(monkeypatch, name, tag):
    shape = {**open_clip.get_model_config(name)["vision_cfg"], "layers": 1, "width": 64}
    made = intercepted(monkeypatch, text_cfg=TEXT, vision_cfg=shape)
    model = HookedVideoLLM.from_open_clip(name, tag)
    wanted, vision = open_clip.get_pretrained_cfg(name, tag), model.cfg.vision
    assert vision.act == ("quick_gelu" if wanted.get("quick_gelu") else "gelu")
    figures = made[0].visual.preprocess_cfg
    assert (vision.mean, vision.std) == (tuple(figures["mean"]), tuple(figures["std"]))
    assert (vision.image_size, vision.image_size) == figures["size"] == (336 if "336" in name else 224,) * 2
    assert vision.resize == "crop"
    assert model.cfg.model_name == f"{name}/{tag}"


def test_the_name_and_tag_reach_open_clips_loader_unchanged(monkeypatch):
    asked: list = []

    def create(*args, **kwargs):
        asked.append((args, kwargs))
        raise RuntimeError("no network here")

    monkeypatch.setattr(open_clip, "create_model", create)
    for tag in (None, "openai", "laion2b_s32b_b82k"):
        with pytest.raises(RuntimeError, match="no network"):
            HookedVideoLLM.from_open_clip("ViT-L-14", tag)
    quick = [(a, k.pop("pretrained"), k.pop("force_quick_gelu"), k) for a, k in asked]
    assert quick == [
        (("ViT-L-14",), None, False, {}),
        (("ViT-L-14",), "openai", True, {}),
        (("ViT-L-14",), "laion2b_s32b_b82k", False, {}),
    ]


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_pixels_are_those_of_open_clips_transform(register, monkeypatch, mode):
    made = intercepted(monkeypatch, force_preprocess_cfg={"resize_mode": mode, "mean": (0.1, 0.2, 0.3)})
    model = HookedVideoLLM.from_open_clip(register(f"small-{mode}"))
    cfg = open_clip.transform.PreprocessCfg(**made[0].visual.preprocess_cfg)
    frame = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    theirs = open_clip.transform.image_transform_v2(cfg, is_train=False)(Image.fromarray(frame))
    ours = preprocess(frame[None], model.cfg.vision)[0]
    # Ours scales bytes in float64 (as transformers does), torchvision in float32.
    assert (ours - theirs).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"attentional_pool": True, "attn_pooler_heads": 2}, "attention pooling"),
        ({"ls_init_value": 0.1}, "layer scale"),
        ({"no_ln_pre": True}, "patches without the pre-norm"),
        ({"no_ln_pre": True, "ls_init_value": 0.1}, "layer scale, patches without the pre-norm"),
    ],
)
def test_a_vit_of_another_structure_is_refused_by_what_it_has(register, given, said):
    name = register("odd", **given)
    with pytest.raises(ConversionError, match=f"open_clip's 'odd' has {said}: not supported"):
        HookedVideoLLM.from_open_clip(name)


@pytest.mark.parametrize("images", [{"resize_mode": "longest"}, {"interpolation": "bilinear"}])
def test_images_resized_in_another_way_are_refused(register, monkeypatch, images):
    intercepted(monkeypatch, force_preprocess_cfg=images)
    shown = {"resize_mode": "shortest", "interpolation": "bicubic", **images}
    said = f"images resized by '{shown['resize_mode']}', {shown['interpolation']}: not supported"
    with pytest.raises(ConversionError, match=said):
        HookedVideoLLM.from_open_clip(register("odd"))


def test_a_resnet_is_refused(register):
    name = register("small-resnet", layers=[1, 1, 1, 1], width=32, patch_size=None, head_width=64)
    with pytest.raises(ConversionError, match="'small-resnet' has a ModifiedResNet as its tower; only ViTs"):
        HookedVideoLLM.from_open_clip(name)


def test_a_timm_tower_such_as_siglips_is_refused(monkeypatch):
    vision = {"image_size": 32, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": "none"}
    intercepted(monkeypatch, text_cfg={**TEXT, "no_causal_mask": True}, vision_cfg=vision, embed_dim=192)
    with pytest.raises(ConversionError, match="'ViT-B-16-SigLIP' has a TimmModel as its tower; only ViTs"):
        HookedVideoLLM.from_open_clip("ViT-B-16-SigLIP")


def test_unknown_names_and_tags_get_open_clips_own_message(register):
    with pytest.raises(RuntimeError, match="'ViT-L-15' not found"):
        HookedVideoLLM.from_open_clip("ViT-L-15")
    with pytest.raises(RuntimeError, match="'no_such_tag' is not a known tag"):
        HookedVideoLLM.from_open_clip(register("small-tagless"), "no_such_tag")

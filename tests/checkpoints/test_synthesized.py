"""Published checkpoints at full size, by their headers: names, shapes, types and files of what the hub has."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hookedvid import HookedVideoLLM
from hookedvid.checkpoints import layouts
from hookedvid.checkpoints.convert import convert, plan
from hookedvid.families.registry import PUBLISHED
from hookedvid.values.frame_size import frame_size
from hookedvid.values.grid import Grid, VideoShape
from originals import script

pytestmark = pytest.mark.shapes_unchecked

# Tensors and parameters of the files, and tokens of a step.
TRUE_SIZES = {
    "longva-7b": (734, 7_935_646_208, 144),
    "longva-7b-dpo": (734, 7_935_646_208, 144),
    "internvideo2.5-8b": (573, 8_075_365_376, 16),
    "llava-video-7b": (765, 8_030_348_832, 210),
    "llava-onevision-7b": (765, 8_030_348_832, 196),
    "llava-onevision-0.5b": (716, 893_618_208, 196),
    "llava-next-video-32b": (1197, 32_942_093_856, 182),
    "llava-next-video-7b": (687, 7_062_906_880, 144),
    "qwen2-vl-2b": (729, 2_208_985_600, 510),
    "qwen2-vl-7b": (730, 8_291_375_616, 510),
    "qwen2.5-vl-3b": (824, 3_754_622_976, 510),
    "qwen2.5-vl-7b": (729, 8_292_166_656, 510),
    "qwen3-vl-2b": (625, 2_127_532_032, 405),
    "qwen3-vl-4b": (713, 4_437_815_808, 405),
    "qwen3-vl-8b": (750, 8_767_123_696, 405),
    "internvl3-1b": (637, 938_193_024, 256),
    "internvl3.5-1b": (657, 1_060_897_792, 256),
    "llava-onevision-1.5-4b": (698, 4_741_610_528, 510),
    "smolvlm2-256m": (471, 256_484_928, 64),
    "smolvlm2-500m": (489, 507_482_304, 64),
    "videollama3-2b": (778, 1_959_993_584, 510),
    "videollama3-2b-image": (778, 1_959_993_584, 510),
    "video-llava-7b": (1077, 7_366_279_168, 257),
}


# Of those on the hub that are in several, and of one that is just not.
N_FILES = {"qwen2-vl-2b": 2, "qwen2-vl-7b": 5, "qwen2.5-vl-3b": 2, "qwen2.5-vl-7b": 5, "qwen3-vl-2b": 1,
           "qwen3-vl-8b": 4}  # fmt: skip


def tokens_of_a_step(cfg) -> int:
    """Of 16 frames of 480x854."""
    cells = Grid.of(cfg, VideoShape(16, *frame_size(cfg.vision, 16, 480, 854)))
    return cells.rows * cells.columns if cfg.vision.budget else cfg.tokens_per_frame


@pytest.mark.parametrize("name", TRUE_SIZES)
def test_true_sizes_by_their_headers(name, tmp_path):
    """Names, shapes and counts of the published checkpoints; the facts' own figures."""
    script.synthesize(name, tmp_path / name, sparse=True)
    known = PUBLISHED[name]
    checked = plan(tmp_path / name, overrides=known.overrides)
    keys, parameters, tokens = TRUE_SIZES[name]
    shapes = checked.shards.shapes
    assert len(shapes) == keys
    assert sum(int(np.prod(s)) for s in shapes.values()) == parameters
    assert tokens_of_a_step(checked.cfg) == tokens and checked.cfg.n_frames == known.frames
    assert len(checked.shards.headers) == N_FILES.get(name, len(checked.shards.headers))
    assert checked.size / 1e9 == pytest.approx(known.size, rel=0.01, abs=0.05)
    assert not checked.origin.notes
    assert checked.cfg.decoder.tied == (not any(layouts.HEAD.fullmatch(n) for n in shapes))


def test_a_whole_one_converts_and_its_first_layers_load(tmp_path):
    """SmolVLM2-256M, the smallest there is, at half its bytes; its weights are zeros."""
    half = replace(script.RECIPES["smolvlm2-256m"], dtype=torch.bfloat16)
    script.synthesize("smolvlm2-256m", tmp_path / "theirs", sparse=True, recipe=half)
    ours = convert(tmp_path / "theirs", tmp_path / "ours", progress=False)
    assert sum(p.stat().st_size for p in ours.glob("*.safetensors")) == pytest.approx(2 * 256_484_928, rel=1e-3)
    model = HookedVideoLLM.from_pretrained(ours, first_n_layers=2)
    assert model.cfg.n_layers == 2 and model.cfg.placeholder_id == 49190 and not model.cfg.decoder.tied
    assert model(torch.arange(5)[None]).shape == (1, 5, 49280)

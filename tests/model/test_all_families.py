"""Every family under one mix of kinds, against the plain decoder: forward, kernels, sweep, session, generation."""

import pytest
import torch

import plain_decoder as plain
from hookedvid import LV_K, VT_K, Ablate, EarlyExit, Knockout, Replace, Session, Steer
from hookedvid.nn.kv import KVCache
from hookedvid.sweep.run import sweep
from models import VIDEO_MODELS, apart, random_model, rich_inputs

pytestmark = [
    pytest.mark.filterwarnings("ignore::hookedvid.values.layout.FrameBlendWarning"),
    pytest.mark.shapes_unchecked,
]


@torch.no_grad()
@pytest.mark.parametrize("family", VIDEO_MODELS)
def test_a_mix_of_kinds_is_the_plain_decoders(family):
    m = random_model(family)
    x = m.encoded(rich_inputs(m))
    vector = torch.linspace(-1, 1, m.cfg.d_model, dtype=torch.float64)
    mix = [
        Knockout("video", "text", heads=[0, 3], weight=0.5),
        VT_K.at(0),
        Replace("video", "last", "0:2", heads={0: 1, 1: [2, 5]}, by="mean"),
        Steer("embed", at="video[1]", vector=vector),
        Ablate("mlp_out", 1, "question+generated", "mean"),
        LV_K.at(1),
        EarlyExit(2, "video[0:2]"),
    ]
    embeds = plain.embedded(m, x)
    wanted = plain.run(m, x.layout, embeds, mix)[0]
    assert apart(m(x, interventions=mix)[0], wanted) <= 1e-12
    assert apart(random_model(family, kernel="eager")(x, interventions=mix)[0], wanted) <= 1e-12
    swept, intact = sweep(m, [x], [mix, ()])[0]
    assert apart(swept, wanted[-1]) <= 1e-12
    assert apart(intact, plain.run(m, x.layout, embeds)[0][-1]) <= 1e-12 < apart(intact, swept)
    assert apart(Session(m, x).logits(mix), wanted[-1]) <= 1e-12
    cache = KVCache(m.cfg.n_layers)
    m(x, interventions=mix, kv_cache=cache)
    longer = x.extend(torch.tensor([[5]]))
    new = torch.nn.functional.pad(m.embed.weight[5:6], (0, embeds.shape[1] - m.cfg.d_model))
    wanted = plain.run(m, longer.layout, torch.cat([embeds, new]), mix)[0][-1]
    assert apart(m(longer, interventions=mix, kv_cache=cache)[0, -1], wanted) <= 1e-12

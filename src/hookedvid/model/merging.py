"""Where tokens are that were merged by their likeness, which only a run of the tower tells."""

import torch
from torch import Tensor

from hookedvid.model.encode_video import encode_video
from hookedvid.nn.model import Model
from hookedvid.nn.projector import merged_into
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.places import TokenPlaces


@torch.no_grad()
def places(model: Model, inputs: VideoInputs) -> TokenPlaces:
    """`inputs.places`, with the cells that each token was merged of where tokens are merged (InternVideo2.5).

    These are found in an intact run of the tower, hooks of yours included. Other families' places need no run.

    Args:
        model: The model.
        inputs: Of one item.

    Raises:
        InputError: On a batch.
    """
    layout, projector = inputs.layout, model.cfg.projector
    if projector is None or projector.merge is None or not layout.n_frames:
        return inputs.places
    fresh = VideoInputs(inputs.tokens, inputs.layouts, inputs.pixel_values).to(model.device)
    entering: list[Tensor] = []

    def enter(features: Tensor, hook: object) -> None:
        entering.append(features)

    with model.hooks(fwd_hooks=[("projector.hook_in", enter)]):
        encode_video(model, fresh)
    cells = model.projector.joined(entering[0].detach(), model.vision.sizes(list(fresh.to_encode)))
    number = merged_into(cells, projector.merge).flatten().cpu()
    return TokenPlaces.of(layout, number)

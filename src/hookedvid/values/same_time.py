"""Positions as an intervention: the whole video at one moment of the rotary positions' time axis."""

from dataclasses import dataclass
from typing import ClassVar

from hookedvid.values.effects import Effects, Intervention
from hookedvid.values.layer_range import spelled
from hookedvid.values.spelling import Spelling


@spelled
@dataclass(frozen=True)
class SameTime(Intervention):
    """All frames at one time: on the time axis of rotary positions every video position has the first step's number.

    Their rows and columns stay, and so do all numbers of text, those of text between steps and behind the video among
    it. Models whose positions have one number refuse it (only Qwen-VL's have a time axis). Where a prompt writes times
    beside frames (Qwen3-VL), these texts stay.
    """

    kind: ClassVar[str] = "same_time"
    spelling = Spelling("same time", "same time")

    def effect(self, n_layers: int) -> Effects:
        """One time for the whole video, from the first block on."""
        return Effects(((),) * n_layers, same_time=True)

    def label(self) -> str:
        """For tables and plots."""
        return "all frames at one time"

"""An item's inputs as a study asks it: by the run, of its clip; by the estimate, of a video that nobody opened."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from hookedvid.data.item import Item, subtitles_path, video_path
from hookedvid.model.prepare import expected
from hookedvid.nn.model import Model
from hookedvid.study.definition import Plan, question_hash
from hookedvid.study.rows import Task
from hookedvid.values.clips import Shuffled
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.places import as_definitions
from hookedvid.video.clip_files import ClipRequest
from hookedvid.video.frames import Clip
from hookedvid.video.refusals import changed
from hookedvid.video.subtitles import expected_subtitles, shown_subtitles


def clip_request(plan: Plan, item: Item, settings: Mapping[str, Any]) -> ClipRequest:
    """The frames that an item is asked about, of the video that the settings of its rows name by its hash."""
    source = str(video_path(item, plan.annotations))
    sampling = (settings["n_frames"], settings["sampler"], item.bound, item.folder_fps)
    return ClipRequest(source, *sampling, content=settings["video"])


def prepared(plan: Plan, model: Model, item: Item, task: Task | None, clip: Clip | None = None) -> VideoInputs:
    """The prompt of one of the item's tasks, laid out by the study's scoring and convention.

    Args:
        plan: The study.
        model: What is asked.
        item: Of the study.
        task: One of the item's, which names the question that its key was made of. None for the run of a source.
        clip: The video's frames. None: tokens and layout for as many frames as the study asks for, without pixels; a
            short clip may have fewer.

    Raises:
        InputError: The item cannot be asked.
        DecodingError: The subtitles are not those that the task's key was made of, or cannot be chosen.
    """
    sampling = {k: plan.settings[k] for k in ("n_frames", "time_instruction", "markers_are_language")}
    if clip is None:
        ask = partial(expected, model, **sampling)
    else:
        if plan.study.frame_order == "shuffled":  # the same for every question on the clip, whatever else is asked
            order = Shuffled(plan.study.seed, item.video).order(len(clip.frames))
            clip = clip._replace(frames=clip.frames[list(order)])
        ask = partial(model.prepare, clip, sampler=plan.settings["sampler"], **sampling)
    inputs = plan.scoring.inputs(ask, model, item, _subtitles(plan, model.cfg.family, item, task, clip))
    return inputs.with_groups(item.groups if clip is not None else _unseen(item.groups))


def _unseen(groups: Any) -> Any:
    """Groups of a video that nobody opened: those of boxes and seconds are taken to be all of it."""
    return {n: {"selector": "video"} if {"box", "seconds"} & how.keys() else how for n, how in as_definitions(groups)}


def _subtitles(plan: Plan, family: str, item: Item, task: Task | None, clip: Clip | None) -> str | None:
    """What is said in the video, where the convention's prompt holds it."""
    by = plan.convention
    if by is None or not by.form_for(family).wants_subtitles:
        return None
    if (path := subtitles_path(item, plan.annotations)) is None:
        return ""
    n = by.subtitle_frames_for(family)
    speech = expected_subtitles(path, n) if clip is None else shown_subtitles(path, clip, n)
    if task is not None and question_hash(item, plan.annotations, plan.scoring) != task.settings["question"]:
        raise changed(path)
    return speech

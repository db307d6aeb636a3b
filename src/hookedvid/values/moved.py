"""Modules under the names they had in 0.2: an import of one gives the module that holds its contents now."""

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "accuracy": "report.presenter",
    "adapters": "checkpoints.lora",
    "answering": "model.answers",
    "bind": "model.bound",
    "cache": "model.cache",
    "checkpoint": "checkpoints.load",
    "config": "values.config",
    "conversion_folder": "checkpoints.conversion_folder",
    "converting": "checkpoints.convert",
    "data.mp4": "data.shapes.mp4",
    "data.shapes_questions": "data.shapes.questions",
    "data.shapes_render": "data.shapes.render",
    "data.shapes_scene": "data.shapes.scene",
    "data.shapes_tasks": "data.shapes.tasks",
    "data.shapes_words": "data.shapes.words",
    "devices": "checkpoints.devices",
    "encoding": "model.encode_video",
    "faces": "cli.verbs",
    "files": "values.files",
    "flops": "model.flops",
    "generation": "model.generation",
    "hooking": "model.hook_verbs",
    "hub": "checkpoints.hub",
    "inputs": "values.inputs",
    "interventions": "values.interventions",
    "layout": "values.layout",
    "loading": "checkpoints.fill",
    "masks": "values.masks",
    "measured": "report.presenter",
    "model_list": "cli.model_list",
    "nn.shared": "nn.text_states",
    "parity": "checkpoints.parity",
    "patching": "model.patching",
    "placing": "checkpoints.placement",
    "plan": "model.run_plan",
    "plots": "report.plots",
    "preparing": "model.prepare",
    "progress": "cli.progress",
    "prompt_tokens": "model.prompt_tokens",
    "published": "families.registry",
    "reading": "model.attention_maps",
    "scores": "report.presenter",
    "session": "sweep.session",
    "sharing": "sweep.tree",
    "sources": "checkpoints.locate",
    "study.breakdown": "study.results.breakdown",
    "study.cluster": "study.run.cluster",
    "study.efficiency": "study.results.efficiency",
    "study.estimate": "study.run.estimate",
    "study.evidence": "study.results.evidence",
    "study.execution": "study.run.execution",
    "study.failures": "study.run.failures",
    "study.grounding": "study.scorings.grounding",
    "study.laws": "study.results.findings",
    "study.manifest": "study.run.manifest",
    "study.measures": "study.results.summary",
    "study.rescoring": "study.results.rescoring",
    "study.running": "study.run.tasks",
    "study.schedule": "study.run.schedule",
    "study.scoring": "study.scorings.outcome",
    "study.statistics": "study.results.statistics",
    "study.study": "study.definition",
    "study.submission": "study.results.submission",
    "study.summary": "study.results.summary",
    "study.timing": "study.run.timing",
    "terminal": "report.terminal",
    "tokenizer": "checkpoints.byte_tokenizer",
    "tokenizer_files": "checkpoints.tokenizer_files",
    "video.prompt": "families.prompts",
    "weight_views": "model.weight_views",
}


class _Moved(MetaPathFinder, Loader):
    """Asked by Python once no module of a name was found."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name.removeprefix("hookedvid.") in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        new = "hookedvid." + MOVED[old.removeprefix("hookedvid.")]
        warnings.warn(f"{old} is {new} now", DeprecationWarning, stacklevel=2)
        sys.modules[old] = importlib.import_module(new)  # which Python gives to who asked


def follow_moves() -> None:
    """Let the old names be imported; twice is once."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())

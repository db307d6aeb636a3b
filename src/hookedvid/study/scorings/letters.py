"""`letters`: options lettered in the prompt, their letters' logits compared at its last position."""

from dataclasses import replace

from hookedvid.data.item import Item
from hookedvid.families.prompts import QuestionForm
from hookedvid.nn.model import Model
from hookedvid.study.scorings.choice import Choice
from hookedvid.study.scorings.scoring import Ask
from hookedvid.values.inputs import VideoInputs


class Letters(Choice):
    """Nothing is parsed, so conditions stay comparable whatever the model would say."""

    name = "letters"
    lettered = True
    tasks = ("questions",)

    def inputs(self, ask: Ask, model: Model, item: Item, subtitles: str | None = None) -> VideoInputs:
        """Question and lettered options, by the convention's form or the model's template."""
        if self.convention is None:
            return ask(item.question, item.options)
        form, options = _printed(self.convention.form_for(model.cfg.family), item)
        return ask(item.question, options, form=replace(form, subtitles=subtitles))


def _printed(form: QuestionForm, item: Item) -> tuple[QuestionForm, tuple[str, ...]]:
    """Form and options; an item's meta may keep the options' lines as its source has them, to be printed so."""
    lines = str(item.meta.get("options", "")).split("\n")
    if "{lettered}" not in form.option or len(lines) != len(item.options):
        return form, item.options
    return replace(form, option=form.option.replace("{lettered}", "{option}")), tuple(lines)

"""`words`: the question alone, the options' own words (one token each) compared at its last position."""

from dataclasses import replace

from hookedvid.data.item import Item
from hookedvid.errors import InputError
from hookedvid.nn.model import Model
from hookedvid.study.scorings.choice import Choice
from hookedvid.study.scorings.scoring import Ask
from hookedvid.values.inputs import VideoInputs, check_vocabulary


class Words(Choice):
    """Options need no letters, and stand in no prompt."""

    name = "words"

    def inputs(self, ask: Ask, model: Model, item: Item, subtitles: str | None = None) -> VideoInputs:
        """Raises InputError for an option that is not one token, and for two that are the same."""
        inputs = ask(item.question)
        tokens = tuple(_token(model, o) for o in item.options)
        check_vocabulary(model.cfg, tokens)
        if len(set(tokens)) < len(tokens):
            raise InputError(f"options {list(item.options)} share a token; score them by letters")
        return replace(inputs, options=(tuple(item.options),), option_tokens=(tokens,))


def _token(model: Model, word: str) -> int:
    ids = model.tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == model.tokenizer.unk_token_id:
        raise InputError(f"the option {word!r} is not one token of this model's; score by letters")
    return ids[0]

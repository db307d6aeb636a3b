"""Fields of other people's configs: taken one by one, so that what nobody took can be refused."""

from collections.abc import Collection, Mapping
from typing import Any

from hookedvid.config import Activation
from hookedvid.errors import ConversionError

ACT: dict[str, Activation] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


class Fields:
    """Takes fields from a config and keeps what it took and what was wrong with it."""

    def __init__(self, values: Mapping[str, Any], what: str):
        self.values = values
        self.what = what
        self.taken: set[str] = set()
        self.problems: list[str] = []

    def __call__(self, name: str, default: Any = None) -> Any:
        """A field, or the default where it is absent."""
        self.taken.add(name)
        return self.values.get(name, default)

    def need(self, name: str) -> Any:
        """A field that must be there; a missing one is recorded."""
        if name not in self.values:
            self.problems.append(f"{name} is missing")
        return self(name)

    def only(self, name: str, *values: Any) -> None:
        """Record a problem unless a field is absent or has one of these values."""
        found = self(name, values[0])
        if found not in values:
            self.problems.append(f"{name} = {found!r} is not supported (only {', '.join(map(repr, values))})")

    def act(self, name: str) -> Activation:
        """One of our activations; an unsupported one is recorded."""
        self.only(name, *ACT)
        return ACT.get(self(name), "gelu")

    def close(self, harmless: Collection[str], ignore: Collection[str] = ()) -> None:
        """Raise ConversionError for everything recorded and for fields set but never taken.

        harmless: fields known to change no forward pass. ignore: fields the caller takes upon himself.
        """
        unknown = sorted(self.values.keys() - self.taken - set(harmless) - set(ignore))
        self.problems += [f"{n} = {self.values[n]!r} is set and nothing here reads it" for n in unknown]
        self.raise_problems(
            "; if such a field changes nothing of the forward pass, ignore it by name" if unknown else ""
        )

    def raise_problems(self, hint: str = "") -> None:
        """Raise ConversionError for everything recorded so far."""
        if self.problems:
            raise ConversionError(f"{self.what}: {'; '.join(self.problems)}{hint}")

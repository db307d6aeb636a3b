"""For the API reference: lines of a docstring that begin with `name:` or `name, name:` become items of a list.

The site's generator knows docstrings with headings over their arguments; ours have none. Loaded by mkdocs.yml.
"""

import re
from typing import Any

import griffe

ITEM = re.compile(r"(?P<indent> *)(?P<names>[a-z_]\w*(?:, [a-z_]\w*)*): ")


def listed(text: str) -> str:
    """The text as Markdown: items under bullets, indented ones under the item above, all else as it stands."""
    first, *rest = text.splitlines() or [""]
    lines, depth = [first], 0  # of the item that goes on, 0 outside any
    for line in rest:
        if item := ITEM.match(line):
            if not depth:
                lines.append("")
            inner = depth > 0 and len(item["indent"]) > 0
            depth = 2 if inner else 1
            lines.append(f"{'    ' * (depth - 1)}- `{item['names']}`: {line[item.end() :]}")
        elif not line or line.startswith("Raises"):
            depth = 0
            lines += [""] * (line != "") + [line]
        else:
            lines.append("    " * depth + line.strip() if depth else line)
    return "\n".join(lines)


class DocstringLists(griffe.Extension):
    """Rewrites every docstring of a package once it is read."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Called by griffe."""
        self._rewrite(pkg)

    def _rewrite(self, what: griffe.Object) -> None:
        if what.docstring is not None:
            what.docstring.value = listed(what.docstring.value)
        for member in what.members.values():
            if isinstance(member, griffe.Object):
                self._rewrite(member)

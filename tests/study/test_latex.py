"""Tables of the command line as LaTeX."""

import re

import pytest
from rich.table import Table

from hookedvid.cli.commands import main
from hookedvid.report.latex import SIGNS, escaped, latex

HOSTILE = r"a & b % $x$ #1 _ {y} \input{/etc/passwd} ~ ^ <s> | [2] → ± “é”" + "\n\u202e"


def test_a_table_is_rows_columns_and_rules():
    table = Table(title="of 3\nquestions")
    table.add_column("condition")
    table.add_column("accuracy, %", justify="right")
    table.add_row("*LV-K", "12.5 ± 3")
    table.add_section()
    table.add_row("chance", "25")
    assert latex(table).splitlines() == [
        "% of 3", "% questions", r"\begin{tabular}{lr}", r"\toprule", r"condition & accuracy, \% \\", r"\midrule",
        r"{}*LV-K & 12.5 $\pm$ 3 \\", r"\midrule", r"chance & 25 \\", r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip


def test_no_text_is_a_command():
    text = escaped(HOSTILE)
    assert "\n" not in text and "\u202e" not in text and "é" in text
    left = text
    for sign in sorted(SIGNS.values(), key=len, reverse=True):
        left = left.replace(sign, "")
    assert not set(left) & set("&%$#_{}\\~^<>|[]")


@pytest.mark.parametrize("arguments", [["models"]])
def test_what_is_printed_goes_into_a_document(arguments, capsys):
    assert main([*arguments, "--format", "latex"]) == 0
    printed = capsys.readouterr().out
    tables = re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", printed, re.S)
    assert tables
    for columns, body in tables:
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert rows and all(len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1 for row in rows)
    outside = re.sub(r"\\begin\{tabular\}.*?\\end\{tabular\}", "", printed, flags=re.S)
    assert all(line.startswith("%") for line in outside.splitlines() if line.strip())

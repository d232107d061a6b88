"""Write the tables of names in docs/dialects/*.md from the layouts: python docs/name_tables.py"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from gptbridge.weights.dialects.registry import find_dialect
from gptbridge.weights.layouts.axes import Axes, axes
from gptbridge.weights.layouts.rules import CANONICAL_AXES, Layout, Rule

PAGES = Path(__file__).with_name("dialects")
START, END = "<!-- names: python docs/name_tables.py -->\n", "<!-- /names -->\n"

_LEGEND = """
H is the hidden width, F the feed-forward width, V the vocabulary, P the positions, C the classes of a
classifier; N a layer, counted from 0, L their number. `{a,b}` in a name: either is read, the first is
written; `[q,k,v]`: three tensors. The last column compares with the canonical weight, which is Hugging
Face's: linear weights (in, out), and in `c_attn` all of q, then all of k, then all of v.
"""
# dialect -> (heading, variants that share a table); a variant stands for all whose names begin with that word
TABLES: Mapping[str, Sequence[tuple[str, Sequence[str]]]] = {
    "torch": [("", ("GPT2Model", "GPT2LMHeadModel"))],
    "gptbridge": [("", ("canonical",))],
    "paddle": [("", ("GPTForPretraining", "GPTModel"))],
    "mindspore": [("", ("GPT2LMHeadModel", "GPT2Model"))],
    "fleetx": [
        ("`fused`: fuse_attn_qkv: True", ("fused",)),
        ("`split`: fuse_attn_qkv: False", ("split",)),
        ("`pipeline`: a stage of several", ("pipeline",)),
    ],
    "modelscope": [("`large`: 1.3B and up", ("large",)), ("`base`: base and large", ("base",))],
    "megatron": [
        ("`version-3` and `version-2`", ("version-3", "version-2")),
        ("`version-1`", ("version-1",)),
        ("`version-0`", ("version-0",)),
        ("`core`: Megatron-Core", ("core",)),
        ("`core-fused-norms`: Megatron-Core with Transformer Engine", ("core-fused-norms",)),
    ],
}
_SIZES = {"v": "V", "t": "P", "i": "H", "o": "H", "n": "H", "f": "F", "c": "C", "r": "rank"}
_QKV_ORDER = {"npd": "head by head q, k, v", "ndp": "head by head, number by number q, k, v"}

Row = tuple[str, str, str, str]  # canonical name, native name, shape, what changes


def tables(dialect: str) -> str:
    """Return the tables of a dialect in Markdown. What an earlier table has is left out of a later one."""
    shown: set[Row] = set()
    parts = [_LEGEND]
    for heading, variants in TABLES[dialect]:
        rows = [row for row in _rows(_chosen(dialect, variants)) if row not in shown]
        rest = ", where it differs from the above" if shown & set(_rows(_chosen(dialect, variants))) else ""
        shown.update(rows)
        parts.append(f"\n{heading}{rest}\n" if heading else "")
        parts.append("\n| canonical | in the file | shape | order |\n|---|---|---|---|\n")
        parts += [f"| `{name}` | `{native}` | {shape} | {order} |\n" for name, native, shape, order in rows]
    return "".join(parts) + "\n"


def with_tables(page: str, dialect: str) -> str:
    """Return the text of a page with its tables made anew."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return before + START + tables(dialect) + END + after


def _chosen(dialect: str, variants: Sequence[str]) -> list[Layout]:
    return [layout for layout in find_dialect(dialect).layouts if layout.variant.split()[0] in variants]


def _rows(chosen: Sequence[Layout]) -> Iterator[Row]:
    for rules in zip(*(layout.rules for layout in chosen), strict=True):
        natives = [
            _alternatives(
                [_numbered(rule.native[part], rule, layout) for rule, layout in _pairs(rules, chosen)]
            )
            for part in range(len(rules[0].native))
        ]
        canonical = rules[0].canonical.format("N")
        yield canonical, _alternatives(natives, "[]"), _shape(rules[0].axes), _order(rules[0])


def _pairs(rules: Sequence[Rule], chosen: Sequence[Layout]) -> Iterable[tuple[Rule, Layout]]:
    return zip(rules, chosen, strict=True)


def _numbered(native: str, rule: Rule, layout: Layout) -> str:
    """Write the layer's number as N, or what it is in a stage that counts other parts too."""
    number = "N" if "{}" in rule.canonical else "L"
    return native.format(f"{number}+{layout.first_layer}" if layout.first_layer else number)


def _alternatives(names: Sequence[str], marks: str = "{}") -> str:
    """Return one expression for names whose dotted parts differ here and there, or lack at the beginning."""
    parts = [name.split(".") for name in names]
    longest = max(map(len, parts))
    columns = zip(*([""] * (longest - len(part)) + part for part in parts), strict=True)
    text = ""
    for number, column in enumerate(columns, start=1):
        dot = "." if number < longest else ""
        values = list(dict.fromkeys(column))
        if len(values) == 1:
            text += values[0] + dot
        elif "" in values:
            text += marks[0] + ",".join(value and value + dot for value in values) + marks[1]
        else:
            text += marks[0] + ",".join(values) + marks[1] + dot
    return text


def _shape(stored: Axes) -> str:
    sizes = ["3H" if "p" in group else _SIZES[group[0]] for group in stored.groups]
    return f"({', '.join(sizes)})"


def _order(rule: Rule) -> str:
    """Say how the tensor's numbers lie, compared to the canonical weight's."""
    canonical = axes(CANONICAL_AXES[rule.canonical.removeprefix("h.{}.")]).letters
    stored = rule.axes.letters
    words = []
    if canonical.replace("p", "") != stored.replace("p", ""):
        words.append("transposed")
    if len(rule.native) > 1:
        words.append("q, k, v apart")
    order = "".join(letter for letter in stored if letter in "pnd")
    if order in _QKV_ORDER:
        words.append(_QKV_ORDER[order])
    return "; ".join(words) or "the same"


if __name__ == "__main__":
    for name in TABLES:
        page = PAGES / f"{name}.md"
        page.write_text(with_tables(page.read_text(), name))

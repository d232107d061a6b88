"""Write the tables of names in docs/dialects/*.md from the layouts: python docs/name_tables.py"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gptbridge.weights.architecture import weight_axes
from gptbridge.weights.dialects.registry import find_dialect
from gptbridge.weights.layouts.rules import Layout, Rule
from gptbridge.weights.layouts.stored import StoredAxes
from gptbridge.weights.layouts.wrappers import WRAPPERS

PAGES = Path(__file__).with_name("dialects")
START, END = "<!-- names: python docs/name_tables.py -->\n", "<!-- /names -->\n"

_LEGEND = f"""
H is the hidden width, F the feed-forward width, V the vocabulary, P the positions, C the classes of a
classifier; N a layer, counted from 0, L their number. `{{a,b}}` in a name: either is read, the first is
written; `[q,k,v]`: three weights that one tensor joins. The last column compares with the canonical
weights: Hugging Face's names and linear weights (in, out), but q, k and v apart. What training code wraps
names in is read past wherever it stands:
{", ".join(f"`{wrapper}.`" for wrapper in WRAPPERS)}.
"""
# dialect -> (heading, variants that share a table); a variant stands for all whose names begin with that
# word. A dialect that is not here has a table for each variant.
TABLES: Mapping[str, Sequence[tuple[str, Sequence[str]]]] = {
    "torch": [("", ("GPT2Model", "GPT2LMHeadModel"))],
    "paddle": [("", ("GPTForPretraining", "GPTModel"))],
    "mindspore": [("", ("GPT2LMHeadModel", "GPT2Model"))],
    "fleetx": [
        ("`fused`: fuse_attn_qkv: True", ("fused",)),
        ("`split`: fuse_attn_qkv: False", ("split",)),
        ("`pipeline`: a stage of several", ("pipeline",)),
    ],
    "modelscope": [("`large`: 1.3B and up", ("large",)), ("`base`: base and large", ("base",))],
    "dcp": [("", ("model", "flat"))],
    "nanogpt": [("`biased`; `bias-free` has the rows that are no bias", ("biased",))],
    "megatron": [
        ("`version-3` and `version-2`", ("version-3", "version-2")),
        ("`version-1`", ("version-1",)),
        ("`version-0`", ("version-0",)),
        ("`engine`: Transformer Engine's layer in the classic model, read", ("engine-version-3",)),
        ("`earliest`: of 2019, CPM-1's too, read", ("earliest",)),
        ("`core`: Megatron-Core", ("core",)),
        ("`core-fused-norms`: Megatron-Core with Transformer Engine", ("core-fused-norms",)),
    ],
}
_SIZES = {"v": "V", "t": "P", "i": "H", "o": "H", "m": "H", "f": "F", "c": "C", "r": "rank"}
# How q, k and v lie in one tensor, by the letters that stand before the three.
_JOINS = {
    "": "q, then k, then v",
    "m": "head by head q, k, v",
    "md": "head by head, number by number q, k, v",
}

Row = tuple[str, str, str, str]  # canonical name, native name, shape, what changes


def tables(dialect: str) -> str:
    """Return the tables of a dialect in Markdown. What an earlier table has is left out of a later one."""
    shown: set[Row] = set()
    parts = [_LEGEND]
    for heading, variants in TABLES.get(dialect) or _by_variant(dialect):
        rows = [row for row in _rows(_chosen(dialect, variants)) if row not in shown]
        rest = ", where it differs from the above" if shown & set(_rows(_chosen(dialect, variants))) else ""
        shown.update(rows)
        parts.append(f"\n{heading}{rest}\n" if heading else "")
        parts.append("\n| canonical | in the file | shape | order |\n|---|---|---|---|\n")
        parts += [f"| `{name}` | `{native}` | {shape} | {order} |\n" for name, native, shape, order in rows]
    return "".join(parts) + "\n"


def _by_variant(dialect: str) -> list[tuple[str, tuple[str, ...]]]:
    variants = [layout.variant for layout in find_dialect(dialect).written_layouts]
    return [(f"`{variant}`" if len(variants) > 1 else "", (variant,)) for variant in variants]


def with_tables(page: str, dialect: str) -> str:
    """Return the text of a page with its tables made anew."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return before + START + tables(dialect) + END + after


def _chosen(dialect: str, variants: Sequence[str]) -> list[Layout]:
    return [layout for layout in find_dialect(dialect).layouts if layout.variant.split()[0] in variants]


def _rows(chosen: Sequence[Layout]) -> Iterator[Row]:
    for rules in zip(*(layout.rules for layout in chosen), strict=True):
        native = _alternatives([_numbered(rule, layout) for rule, layout in zip(rules, chosen, strict=True)])
        canonical = _alternatives([name.format("N") for name in rules[0].canonical], "[]")
        yield canonical, native, _shape(rules[0].axes), _order(rules[0])


def _numbered(rule: Rule, layout: Layout) -> str:
    """Write the layer's number as N, or what it is in a stage that counts other parts too."""
    number = "N" if "{}" in rule.canonical[0] else "L"
    return rule.native.format(f"{number}+{layout.first_layer}" if layout.first_layer else number)


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


def _shape(stored: StoredAxes) -> str:
    sizes = [_SIZES[group[0]] for group in stored.parts[0].groups]
    if len(stored.parts) > 1:
        sizes[stored.dim] = f"{len(stored.parts)}H"
    return f"({', '.join(sizes)})"


def _order(rule: Rule) -> str:
    """Say how the tensor's numbers lie, compared to those of the canonical weights."""
    canonical = weight_axes(rule.canonical[0].format(0))
    words = (
        ["transposed"]
        if [g[0] for g in canonical.groups] != [g[0] for g in rule.axes.parts[0].groups]
        else []
    )
    if len(rule.canonical) > 1:
        words.append(_JOINS[rule.axes.outer])
    return "; ".join(words) or "the same"


if __name__ == "__main__":
    for page in PAGES.glob("*.md"):
        page.write_text(with_tables(page.read_text(), page.stem))

"""docs/plugins.md names every hook and every method of the protocols with its arguments, and no other."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from gptbridge import hookspecs
from gptbridge.rules.stepping import Stepper
from gptbridge.session import Decoder, LanguageModel, Trainer

TEXT = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()


def signatures(owner: object, prefix: str) -> set[str]:
    """Return `name(argument, ...)` of each function of `owner`."""
    functions = [f for name, f in vars(owner).items() if inspect.isfunction(f) and re.match(prefix, name)]
    parameters = [
        (f.__name__, [p for p in inspect.signature(f).parameters if p != "self"]) for f in functions
    ]
    return {f"{name}({', '.join(names)})" for name, names in parameters}


def rows(heading: str) -> set[str]:
    """Return the first cells of the table under `heading`."""
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE))


def test_every_hook_is_described() -> None:
    assert rows("Hooks") == signatures(hookspecs, "gptbridge_")


@pytest.mark.parametrize(
    ("heading", "owner"),
    [("A model", LanguageModel), ("A decoder", Decoder), ("A trainer", Trainer), ("A step's parts", Stepper)],
)
def test_every_method_is_described(heading: str, owner: type) -> None:
    given = {"step(batch, learning_rate)", "accumulate(batch)"} if owner is Stepper else set()
    assert rows(heading) == signatures(owner, "[a-z]") - given


def test_the_layout_is_one() -> None:
    source = TEXT.partition("```python\nfrom gptbridge.weights.layouts")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec("from gptbridge.weights.layouts" + source, names)  # noqa: S102
    found = names["LAYOUT"].find("layers.3.attention.qkv.weight")
    assert found.canonicals == ("h.3.attn.q.weight", "h.3.attn.k.weight", "h.3.attn.v.weight")
    assert names["LAYOUT"].find("layers.3.attention.qkv") is None

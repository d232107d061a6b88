"""Write the tables of protocols between the marks of docs/evaluation.md: `python docs/protocol_tables.py`."""

from __future__ import annotations

from pathlib import Path

from gptbridge.evaluation.protocols import PROTOCOLS, Protocol

PAGE = Path(__file__).with_name("evaluation.md")
BEGIN, END = "<!-- protocols -->\n", "<!-- /protocols -->\n"


def section(protocol: Protocol) -> str:
    """Return what the page says of one protocol."""
    window = f"window {protocol.window or 'as trained'}"
    stride = f"stride {protocol.stride or 'half of it'}" if protocol.cut == "windows" else f"{protocol.cut}"
    lines = [
        f"### {protocol.name}",
        "",
        f"{protocol.system}. {window}, {stride}, batch {protocol.batch_size}.",
    ]
    for task, quirks in protocol.quirks.items():
        if quirks:
            lines += ["", f"Not strict, in {task}:", "", *(f"- {quirk}" for quirk in quirks)]
    return "\n".join(lines)


def page(text: str) -> str:
    """Return the page with its tables as the code has them."""
    head, _, rest = text.partition(BEGIN)
    sections = "\n\n".join(section(protocol) for protocol in PROTOCOLS.values())
    return f"{head}{BEGIN}\n{sections}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))

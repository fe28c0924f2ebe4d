"""Draws the targets as an SVG: one bar each, from the target's line to the measured value; to the right is better.

The scale is logarithmic. Whether a target is met is also shown by direction, sign and hatching, not only by colour. The
same numbers give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final
from xml.etree import ElementTree as Xml

from benchmarks.harness.cells import TARGETS, Cell

_WIDTH: Final = 960
_HEAD, _ROW, _FOOT = 46, 26, 14
_TITLES, _LEFT, _RIGHT = 12, 428, 780
_MOST: Final = 4.0
"""End of the scale; its inverse is the beginning. An arrow marks values beyond."""
_STYLE: Final = """
.ground{fill:#fff;stroke:#d0d7de} text{fill:#1f2328;font:13px system-ui,sans-serif} .faint{fill:#59636e;font-size:12px}
.grid{stroke:#d0d7de} .target{stroke:#1f2328;stroke-width:1.5} .whisker{stroke:#1f2328;stroke-width:1.5;fill:none}
.met{fill:#54a878} .missed{fill:url(#hatch);stroke:#d1574b} .ink{stroke:#d1574b;stroke-width:3}
@media (prefers-color-scheme:dark){.ground{fill:#0d1117;stroke:#3d444d} text{fill:#f0f6fc} .faint{fill:#9198a1}
.grid{stroke:#3d444d} .target,.whisker{stroke:#f0f6fc}}
"""


def draw(cells: Sequence[Cell]) -> str:
    """Return an SVG of the cells with targets, except targets of zero, which have no ratio."""
    shown = [each for each in cells if each.target]
    height = _HEAD + _ROW * len(shown) + _FOOT
    root = Xml.Element(
        "svg",
        {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {_WIDTH} {height}", "role": "img"},
    )
    Xml.SubElement(root, "title").text = "Measured values beside their targets"
    Xml.SubElement(root, "style").text = _STYLE
    hatch = {
        "id": "hatch",
        "width": "6",
        "height": "6",
        "patternUnits": "userSpaceOnUse",
        "patternTransform": "rotate(45)",
    }
    pattern = Xml.SubElement(Xml.SubElement(root, "defs"), "pattern", hatch)
    _add(pattern, "line", "ink", x1=0, y1=0, x2=0, y2=6)
    _add(root, "rect", "ground", x=0.5, y=0.5, width=_WIDTH - 1, height=height - 1, rx=6)
    _scale(root, height)
    for index, each in enumerate(shown):
        _bar(root, each, _HEAD + index * _ROW)
    Xml.indent(root, " ")
    return Xml.tostring(root, encoding="unicode") + "\n"


def score(each: Cell, value: float) -> float:
    """Return how many times as good as its target a value is; 1 just meets it."""
    assert each.target
    if not each.less_is_better:
        return max(value, 0.0) / each.target
    return each.target / value if value > 0 else math.inf


def _scale(root: Xml.Element, height: int) -> None:
    for mark, label in ((0.25, "¼"), (0.5, "½"), (1.0, "target"), (2.0, "2×"), (4.0, "4×")):
        x = _x(mark)
        _add(root, "line", "target" if mark == 1 else "grid", x1=x, y1=_HEAD - 8, x2=x, y2=height - _FOOT)
        _add(root, "text", "faint", label, x=x, y=_HEAD - 14, text_anchor="middle")
    _add(root, "text", "faint", "← missed", x=_LEFT - 8, y=_HEAD - 14, text_anchor="end")
    _add(root, "text", "faint", "better →", x=_RIGHT + 12, y=_HEAD - 14)


def _bar(root: Xml.Element, each: Cell, top: int) -> None:
    middle = top + _ROW / 2
    reached = score(each, each.value)
    start, end = sorted((_x(1.0), _x(reached)))
    row = TARGETS[each.id].row
    _add(root, "text", "", f"{row}  {TARGETS[each.id].title}", x=_TITLES, y=middle + 4.5)
    look = "met" if each.met else "missed"
    _add(root, "rect", look, x=start, y=top + 6, width=max(round(end - start, 1), 1), height=_ROW - 12)
    low, high = sorted(_x(score(each, value)) for value in (each.low, each.high))
    ends = " ".join(f"M{x:g} {middle - 4:g}V{middle + 4:g}" for x in (low, high))
    _add(root, "path", "whisker", d=f"M{low:g} {middle:g}H{high:g} {ends}")
    beyond = "▸ " if reached > _MOST else "◂ " if reached < 1 / _MOST else ""
    sign = "≤" if each.less_is_better else "≥"
    unit = "" if each.unit.endswith("×") or each.unit == "copies" else f" {each.unit}"
    label = f"{beyond}{'✓' if each.met else '✗'} {each.value:.3g}{unit} ({sign} {each.target:g})"
    _add(root, "text", "", label, x=_RIGHT + 12, y=middle + 4.5)


def _x(times: float) -> float:
    """Return the x coordinate of a score."""
    within = math.log(min(max(times, 1 / _MOST), _MOST), _MOST)
    return round(_LEFT + (_RIGHT - _LEFT) * (within + 1) / 2, 1)


def _add(parent: Xml.Element, tag: str, look: str, text: str | None = None, **attributes: float | str) -> Xml.Element:
    texts = {"class": look} if look else {}
    texts |= {name.replace("_", "-"): f"{v:g}" if not isinstance(v, str) else v for name, v in attributes.items()}
    element = Xml.SubElement(parent, tag, texts)
    element.text = text
    return element

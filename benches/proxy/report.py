"""The table of figures, and whether the goals are met."""
import math
from dataclasses import dataclass

from measure import Spread
from rows import GOALS

REFERENCE, SUBJECT, BEFORE = "nginx", "domicile", "domicile-against"
MET, WITHIN_SPREAD, MISSED, UNKNOWN, NO_GOAL = "met", "within spread", "MISSED", "unknown", ""


@dataclass
class Line:
    """One figure of a row: the values of each proxy, one for each round."""

    key: str
    text: str
    unit: str
    values: dict[str, list[float]]

    @property
    def goal(self):
        return GOALS.get(self.key)

    def ratios(self, proxy, reference=REFERENCE):
        """Round by round, because the speed of a machine changes between rounds."""
        pairs = zip(self.values.get(proxy, []), self.values.get(reference, []))
        return [value / base for value, base in pairs if base > 0]

    def judged(self):
        """The values that the goal limits."""
        return self.ratios(SUBJECT) if self.goal.is_ratio else self.values.get(SUBJECT, [])

    def verdict(self):
        if not self.goal:
            return NO_GOAL
        if not self.judged():
            return UNKNOWN
        spread = Spread.of(self.judged())
        if spread.median <= self.goal.limit:
            return MET
        return WITHIN_SPREAD if spread.low <= self.goal.limit else MISSED

    def miss(self):
        return f"{self.key}: {'×' if self.goal.is_ratio else ''}{spread_text(self.judged())}, the goal is {self.goal}"

    def cell(self, proxy):
        if not self.values.get(proxy):
            return "–"
        text, ratios = spread_text(self.values[proxy]), self.ratios(proxy)
        if proxy != REFERENCE and ratios:
            text += f" ×{Spread.of(ratios).median:.2f}"
        return text


    def change(self):
        """Domicile as a ratio to the binary of `--against`."""
        ratios = self.ratios(SUBJECT, BEFORE)
        return f"×{spread_text(ratios)}" if ratios else "–"


def spread_text(values):
    spread = Spread.of(values)
    text = number(spread.median)
    return text if len(values) == 1 else f"{text} ({number(spread.low)}–{number(spread.high)})"


def number(value):
    """Three significant digits."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{min(digits, 3)}f}"


def lines(row, figures):
    return [Line(row.key(label), row.text, unit, figures.values.get(label, {})) for label, unit in row.units.items()]


def table(found, proxies, is_markdown):
    head = ["row", "work", "unit", *proxies, "goal", "result"]
    body = [[line.key, line.text, line.unit, *map(line.cell, proxies), str(line.goal or ""), line.verdict()] for line in found]
    if BEFORE in proxies:
        head.append("change")
        for cells, line in zip(body, found):
            cells.append(line.change())
    if is_markdown:
        return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *body])
    widths = [max(len(cells[column]) for cells in [head, *body]) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip() for cells in [head, *body])

"""Medians, ratios and the table."""

import os
import platform
import statistics
from dataclasses import dataclass, field


@dataclass
class Row:
    """One measurement: milliseconds of the product and of its floor."""

    what: str
    floor_name: str
    product: list
    floor: list
    target: float | None
    # Milliseconds that the product may take beyond target × floor: a grace that a service was given and used.
    grace: float = 0.0
    # Where the product's time goes: name and milliseconds of each run.
    parts: dict = field(default_factory=dict)

    def cells(self):
        product, floor = statistics.median(self.product), statistics.median(self.floor)
        if self.target is None:
            target, verdict = "–", "–"
        else:
            target = f"≤ {self.target:g}" + (f" + {self.grace:.0f} ms" if self.grace else "")
            verdict = "met" if product <= self.target * floor + self.grace else "MISSED"
        spread = f"{min(self.product):.0f}–{max(self.product):.0f}"
        return [self.what, f"{product:.1f}", spread, self.floor_name, f"{floor:.1f}", f"{product / floor:.2f}", target, verdict]


class Report:
    """Collects what was measured and prints it at the end, as Markdown."""

    def __init__(self):
        self.rows = []
        self.explained = []
        self.rates = []
        self.bounds = []
        self.said = []
        self.memory = []
        self.not_measured = []

    def time(self, row):
        self.rows.append(row)
        if row.parts:
            self.where(row.what, row.parts)

    def where(self, what, parts):
        """Where the time of a measurement goes: name and milliseconds of each run."""
        self.explained.append((what, parts))

    def say(self, text):
        """What no table has."""
        self.said.append(text)

    def rate(self, what, unit, product, peer, peers, target):
        """More is better: the product's against a peer's."""
        product, floor = statistics.median(product), statistics.median(peers)
        verdict = "–" if target is None else "met" if product >= target * floor else "MISSED"
        target = "–" if target is None else f"≥ {target:g}"
        ratio = f"{product / floor:.2f}"
        self.rates.append([what, f"{product:.0f} {unit}", peer, f"{floor:.0f}", ratio, target, verdict])

    def bound(self, what, unit, value, most):
        self.bounds.append([what, f"{value:.2f} {unit}", f"≤ {most:g}", "met" if value <= most else "MISSED"])

    def note_memory(self, what, kib):
        self.memory.append([what, f"{kib / 1024:.1f}"])

    def missing(self, case, why):
        self.not_measured.append((case, why))

    def print(self, runs):
        machine = f"{os.cpu_count()} CPUs, Linux {platform.release()}"
        print(f"# Measured\n\n{machine}; medians of {runs} runs, product and floor in turns.\n")
        if self.rows:
            heads = ["", "ms", "range", "floor", "ms", "ratio", "target", ""]
            print(table(heads, [row.cells() for row in self.rows]))
        if self.rates:
            print("\nThe gateway with its session check, against proxies without one:\n")
            print(table(["", "envforge", "peer", "", "ratio", "target", ""], self.rates))
        if self.bounds:
            print()
            print(table(["", "measured", "target", ""], self.bounds))
        if self.explained:
            print("\nWhere the time goes, medians in ms:\n")
            for what, parts in self.explained:
                parts = ", ".join(f"{name} {statistics.median(ms):.1f}" for name, ms in parts.items())
                print(f"- {what}: {parts}")
        if self.said:
            print()
            for text in self.said:
                print(f"- {text}")
        if self.memory:
            print("\nMemory (proportional set size):\n")
            print(table(["", "MiB"], self.memory))
        for case, why in self.not_measured:
            print(f"\nNOT MEASURED: {case}: {why}")


def table(heads, rows):
    widths = [max(len(line[i]) for line in [heads, *rows]) for i in range(len(heads))]
    lines = [heads, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines)

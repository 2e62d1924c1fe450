"""Counts what became of annotated rows, and how far the missing ones could move the shares of the labels."""

from collections import Counter

from utils.annotation import FAILED, SCALES, USABLE
from utils.report import markdown_table

MOST_GROUPS = 20  # in the printed table; the run record has all


class Tally:
    """Statuses and labels of rows, by group."""

    def __init__(self):
        self.statuses: Counter = Counter()  # (group, status) -> rows
        self.labels: Counter = Counter()  # (group, label, value) -> usable rows
        self.flagged = self.asked_again = self.invented_words = self.unchanged = 0

    def add(self, row: dict, group: str) -> None:
        self.statuses[group, row["status"]] += 1
        self.flagged += bool(row["suspicious"])
        self.asked_again += row["tries"] > 1
        self.invented_words += row.get("invented_words", 0)
        self.unchanged += row.get("unchanged", False)
        if row["status"] in USABLE:
            for label in SCALES:
                if label in row:
                    self.labels[group, label, row[label]] += 1

    def counts(self, group: str | None = None) -> Counter:
        """Rows by status, of one group or of all."""
        counts: Counter = Counter()
        for (name, status), rows in self.statuses.items():
            if group is None or name == group:
                counts[status] += rows
        return counts

    def shares(self, label: str, value: str, group: str | None = None) -> dict[str, float]:
        """Share of a label among the usable rows, and where it would stand in the worst cases.

        Rows without a label are not missing at random: toxic ones are refused more often. So `low` supposes that none
        of them has the label, `high` that all have it (bounds without assumptions, Manski 1990).
        """
        counts = self.counts(group)
        total, usable = counts.total() - counts["empty"], sum(counts[status] for status in USABLE)
        rows = sum(n for (name, *what), n in self.labels.items() if what == [label, value] and group in (None, name))
        if not total:
            return {"share": None, "low": 0.0, "high": 1.0}
        share = rows / usable if usable else None
        return {"share": share, "low": rows / total, "high": (rows + total - usable) / total}

    def summary(self) -> dict:
        """For the run record."""
        groups = sorted({group for group, _ in self.statuses})
        counted = ("flagged", "asked_again", "invented_words", "unchanged")
        record = {"statuses": dict(self.counts())} | {name: getattr(self, name) for name in counted}
        if len(groups) > 1:
            record["by_group"] = {g: {"statuses": dict(self.counts(g)), "labels": self._labels(g)} for g in groups}
        return record | {"labels": self._labels(None)}

    def _labels(self, group: str | None) -> dict:
        asked = {label for _, label, _ in self.labels}
        return {
            label: {value: self.shares(label, value, group) for value in scale}
            for label, scale in SCALES.items()
            if label in asked
        }

    def sentence(self) -> str:
        """What became of the rows, in one line."""
        counts = ", ".join(f"{rows} {status}" for status, rows in self.counts().most_common())
        return (
            f"{counts}; rows asked again: {self.asked_again}; biased_words not found in their text, dropped: "
            f"{self.invented_words}"
        )

    def tables(self) -> str:
        """For people: statuses by group, label shares with their bounds."""
        groups = sorted({group for group, _ in self.statuses}, key=lambda group: (-self._failed(group), group))
        columns = [status for status in (*USABLE, *FAILED, "empty") if self.counts()[status]]
        biased = any(label == "bias" for _, label, _ in self.labels)
        header = ["group", "rows", *columns] + (["bias Yes", "bias Yes, worst cases"] if biased else [])
        rows = []
        for group in [None, *(groups[:MOST_GROUPS] if len(groups) > 1 else [])]:
            counts = self.counts(group)
            cells = ["all" if group is None else group, str(counts.total()), *(str(counts[c]) for c in columns)]
            rows.append(cells + (_bounds(self.shares("bias", "Yes", group)) if biased else []))
        text = markdown_table(header, rows)
        if len(groups) > MOST_GROUPS:
            text += f"\n({len(groups) - MOST_GROUPS} more groups are in the run record)"
        if biased:
            shares = [
                [f"{label} {value}", *_bounds(self.shares(label, value))]
                for label, scale in SCALES.items()
                for value in scale
            ]
            text += "\n\n" + markdown_table(["label", "share of usable rows", "worst cases"], shares)
        return text

    def _failed(self, group: str) -> float:
        counts = self.counts(group)
        return sum(counts[status] for status in FAILED) / counts.total()


def _bounds(shares: dict) -> list[str]:
    share = "" if shares["share"] is None else f"{shares['share']:.3f}"
    return [share, f"{shares['low']:.3f} to {shares['high']:.3f}"]

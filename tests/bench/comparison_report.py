"""The rows of a comparison as two tables and two pictures."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comparison_equal import Equal, Reading, Setting, size_at_divergence, size_at_gap

LAST = 4  # deltas that a run's steady state is judged by
COLUMNS = (
    "method",
    "ratio, last four deltas",
    "whole run",
    "bits a parameter",
    "compress, MB/s",
    "decompress, MB/s",
    "compress, MB/CPU s",
    "decompress, MB/CPU s",
    "KL, nats",
    "resume gap",
    "held-out gap",
    "training gap after 1, 2, 3 restores",
    "held-out gap after them",
)
LOSSLESS = "lossless"
FAMILIES = ("ckzd paper", "ckzd", "ExCP + fill", "ExCP")  # the first that a lossy method's name begins with is its own
ORDER = ("ckzd", "ckzd paper", "ExCP + fill", "ExCP", LOSSLESS)  # of the table
KL_BARS = (3e-4, 1e-3, 4e-3)


@dataclass
class Summary:
    """What the log knows of one method as its code is now."""

    name: str
    version: str
    deltas: list[dict[str, Any]] = field(default_factory=list)  # the base first
    quality: dict[str, Any] = field(default_factory=dict)
    cycles: dict[str, Any] = field(default_factory=dict)

    @property
    def lossy(self) -> bool:
        """Whether it gives back something else than it got."""
        return any(row["lossy"] for row in self.deltas)

    @property
    def family(self) -> str:
        """The curve that it is a setting of."""
        return next(family for family in FAMILIES if self.name.startswith(family)) if self.lossy else LOSSLESS

    def ratios(self) -> dict[int, float]:
        """By step."""
        return {row["step"]: row["original_bytes"] / row["bytes"] for row in self.deltas}

    def ratio_last(self) -> float | None:
        """Mean of the last deltas."""
        deltas = list(self.ratios().values())[1:]
        return statistics.mean(deltas[-LAST:]) if deltas else None

    def ratio_whole(self) -> float | None:
        """All originals over all archives, with the base."""
        return _total(self.deltas, "original_bytes") / _total(self.deltas, "bytes") if self.deltas else None

    def bits(self, parameters: int) -> float | None:
        """Bits a parameter of the last deltas."""
        chosen = self.deltas[1:][-LAST:]
        return 8 * statistics.mean(row["bytes"] for row in chosen) / parameters if chosen else None

    def bytes_at(self, step: int) -> int | None:
        """Of the delta of this step."""
        return next((row["bytes"] for row in self.deltas[1:] if row["step"] == step), None)

    def speeds(self) -> list[float | None]:
        """MB/s over the last deltas: encoding, decoding by the wall, then both by CPU seconds."""
        rows = self.deltas[1:][-LAST:]
        decoding = [self.quality] if "decode_seconds" in self.quality else rows
        size = rows[-1]["original_bytes"] / 1e6 if rows else 0.0
        sides = [(rows, "seconds"), (decoding, "decode_seconds")]
        sides += [(rows, "cpu_seconds"), (decoding, "decode_cpu_seconds")]
        known = [[row[name] for row in side if row.get(name)] for side, name in sides]
        return [size / statistics.mean(seconds) if seconds else None for seconds in known]


def _total(rows: list[dict[str, Any]], name: str) -> float:
    return sum(row[name] for row in rows)


def summaries(rows: list[dict[str, Any]]) -> dict[str, Summary]:
    """By method: the rows of the code that wrote the newest of them, steps ascending."""
    found: dict[str, Summary] = {}
    for row in rows:
        if "method" not in row:
            continue
        known = found.get(row["method"])
        if known is None or known.version != row["version"]:
            known = found[row["method"]] = Summary(row["method"], row["version"])
        if row["part"] == "delta":
            known.deltas = sorted([*known.deltas, row], key=lambda each: each["step"])
        else:
            setattr(known, row["part"], row)
    return found


def ordered(found: dict[str, Summary]) -> list[Summary]:
    """Those with archives: by family, best ratio first."""
    kept = [summary for summary in found.values() if summary.deltas]
    return sorted(kept, key=lambda each: (ORDER.index(each.family), -(each.ratio_last() or 0)))


def settings(methods: Sequence[Summary], family: str, step: int, error: str) -> list[Setting]:
    """A family's curve: what each of its settings loses and stores at `step`."""
    known = [each for each in methods if each.family == family and error in each.quality]
    return [Setting(each.quality[error], size) for each in known if (size := each.bytes_at(step)) is not None]


def equal_sizes(methods: Sequence[Summary], step: int) -> list[Equal]:
    """The filled baseline against ckzd: at the bars of KL, and at the held-out gap of each of ckzd's settings."""
    filled, ckzd = (settings(methods, family, step, "kl") for family in ("ExCP + fill", "ckzd"))
    at_equal = [Equal("KL", kl, size_at_divergence(filled, kl), size_at_divergence(ckzd, kl)) for kl in KL_BARS]
    filled, ckzd = (settings(methods, family, step, "heldout_gap") for family in ("ExCP + fill", "ckzd"))
    gaps = sorted(setting.error for setting in ckzd)
    return at_equal + [Equal("held-out gap", gap, size_at_gap(filled, gap), size_at_gap(ckzd, gap)) for gap in gaps]


def write_report(rows: list[dict[str, Any]], work: Path) -> None:
    """WORK/comparison.md, also printed; bits_against_kl.png, ratio_over_the_run.png."""
    from comparison_plots import Point, plot_rate, plot_ratios

    header = [row for row in rows if "subject" in row][-1]
    found = summaries(rows)
    methods = ordered(found)
    step, parameters = header["subject"]["step"], header["parameters"]
    equal = equal_sizes(methods, step)
    text = "\n".join([*table(methods, found, header), "", *equal_table(equal, methods, step)]) + "\n"
    (work / "comparison.md").write_text(text)
    print(text)
    points = [
        Point(each.name, each.family, 8 * size / parameters, kl, each.quality.get("resume_gap"))
        for each in methods
        if (kl := each.quality.get("kl") if each.lossy else 0.0) is not None
        and (size := each.bytes_at(step)) is not None
    ]
    if points:
        plot_rate(points, [each for each in equal if each.measure == "KL"], parameters, work / "bits_against_kl.png")
    if lines := [(each.name, each.family, each.ratios()) for each in methods if len(each.deltas) > 1]:
        plot_ratios(lines, work / "ratio_over_the_run.png")


def equal_table(equal: Sequence[Equal], methods: Sequence[Summary], step: int) -> list[str]:
    """Markdown: bytes of both and their ratio, or which errors the curves reach."""
    spans = {
        (measure, family): _span([setting.error for setting in settings(methods, family, step, error)], measure)
        for measure, error in (("KL", "kl"), ("held-out gap", "heldout_gap"))
        for family in ("ExCP + fill", "ckzd")
    }

    def size(reading: Reading | None, measure: str, family: str) -> str:
        if reading is None:
            return spans[measure, family]
        return f"{reading.size:,.0f}" + (" (extrapolated)" if reading.extrapolated else "")

    lines = [_cells("at equal", "ExCP + fill, bytes", "ckzd, bytes", "factor"), _cells(*["---"] * 4)]
    for each in equal:
        sizes = size(each.baseline, each.measure, "ExCP + fill"), size(each.ckzd, each.measure, "ckzd")
        factor = "-" if each.factor is None else f"{each.factor:.2f}x"
        lines.append(_cells(f"{each.measure} {_error(each.error, each.measure)}", *sizes, factor))
    return lines


def _span(errors: list[float], measure: str) -> str:
    if not errors:
        return "not measured"
    return f"not bracketed: {_error(min(errors), measure)} to {_error(max(errors), measure)}"


def _error(error: float, measure: str) -> str:
    return f"{error:.1e}" if measure == "KL" else _percent(error)


def table(methods: list[Summary], found: dict[str, Summary], header: dict[str, Any]) -> list[str]:
    """Markdown, a line an item: what was measured and on what, then a row a method."""
    step = header["subject"]["step"]
    said = ("cpu", "cores", "memory_gib", "gpu", "python", "torch")
    lines = [
        f"Size `{header['subject']['size']}`, {header['parameters']:,} parameters, restored at step {step}.",
        "Machine: " + ", ".join(f"{name} {header[name]}" for name in said) + ".",
        "",
        _cells(*COLUMNS),
        _cells(*["---"] * len(COLUMNS)),
    ]
    measured = next((each.quality for each in methods if "kl" in each.quality), {})
    lines += [_line(each, found, header["parameters"]) for each in methods]
    control = [_percent(measured.get(f"{name}_control")) for name in ("resume_gap", "heldout_gap")]
    lines.append(_cells("control: last bits moved", *["-"] * 8, *control, *_cycle_gaps(found.get("control"), found)))
    return lines


def _line(each: Summary, found: dict[str, Summary], parameters: int) -> str:
    numbers = each.ratio_last(), each.ratio_whole(), each.bits(parameters), *each.speeds()
    rates = [f"{number:.4g}" if number is not None else "-" for number in numbers]
    if not each.lossy:
        return _cells(each.name, *rates, "0", *["exact"] * 4)
    kl = f"{each.quality['kl']:.2e}" if "kl" in each.quality else "-"
    gaps = [_percent(each.quality.get(name)) for name in ("resume_gap", "heldout_gap")]
    return _cells(each.name, *rates, kl, *gaps, *_cycle_gaps(each, found))


def _cycle_gaps(each: Summary | None, found: dict[str, Summary]) -> list[str]:
    """Relative excess over the uninterrupted run, of training and held-out loss."""
    whole = found.get("uninterrupted")
    if each is None or whole is None or not each.cycles or each.cycles["step"] != whole.cycles["step"]:
        return ["-", "-"]
    pairs = [zip(each.cycles[name], whole.cycles[name], strict=True) for name in ("training", "heldout")]
    return [", ".join(_percent(loss / expected - 1) for loss, expected in pair) for pair in pairs]


def _percent(gap: float | None) -> str:
    return "-" if gap is None else f"{100 * gap:+.2f} %"


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"

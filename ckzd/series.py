"""Series: what in one directory follows each other. G_100.pth and G_200.pth are one, D_100.pth is of another.

Of the numbers in a name only the step leaves it out, as far as names tell which one that is: net_0_100.pth and
net_1_100.pth are two models, because they differ at one step; run_7_100.pth alone may count epochs as well.

A checkpoint is a delta against the archive before it in its series, and each series keeps what its next one needs.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ckzd.chains import ArchiveRecord, is_ruined, references_in
from ckzd.formats.names import series_in_name, step_and_others

LIVE_ARCHIVES = 32  # a series of which none of the latest so many is has ended: it keeps nothing at hand

Steps = dict[str, set[int | None]]  # by name, those that were saved under it


def by_series(records: Iterable[ArchiveRecord]) -> dict[str, list[ArchiveRecord]]:
    """The archives of a run by their series, each in the order in which they come."""
    records = list(records)
    return _grouped(records, _series(_steps(records)))


def split(
    records: Iterable[ArchiveRecord], name: str, step: int | None
) -> tuple[list[ArchiveRecord], list[list[ArchiveRecord]]]:
    """The archives of the series that a checkpoint of this name and step belongs to, and those of each other series."""
    records = list(records)
    steps = _steps(records)
    steps[name].add(step)
    series = _series(steps)
    found = _grouped(records, series)
    own = found.pop(series[name], [])
    return own, list(found.values())


def _grouped(records: Iterable[ArchiveRecord], series: Mapping[str, str]) -> dict[str, list[ArchiveRecord]]:
    found: dict[str, list[ArchiveRecord]] = {}
    for record in records:
        found.setdefault(series[record.manifest.name], []).append(record)
    return found


def _steps(records: Iterable[ArchiveRecord]) -> Steps:
    steps: Steps = defaultdict(set)
    for record in records:
        steps[record.manifest.name].add(record.manifest.step)
    return steps


def _series(steps: Steps) -> dict[str, str]:
    """The series of each name. One under which several steps were saved, agent_3.pt, has no step in it."""
    places = _places_of_models(name for name, found in steps.items() if len(found) == 1)
    return {
        name: name if len(found) > 1 else series_in_name(name, places.get(series_in_name(name), ()))
        for name, found in steps.items()
    }


def _places_of_models(names: Iterable[str]) -> dict[str, set[int]]:
    """By what names have in common without numbers, the places of those numbers in which two of one step differ."""
    of_step: dict[tuple[str, int | None], dict[int, str]] = {}
    places: dict[str, set[int]] = defaultdict(set)
    for name in names:
        text, (step, numbers) = series_in_name(name), step_and_others(name)
        first = of_step.setdefault((text, step), dict(numbers))
        places[text].update(place for place, number in numbers if first.get(place) != number)
    return places


def written(record: ArchiveRecord) -> int:
    """When the last of its checkpoint's files was written, in nanoseconds."""
    return max(file.mtime_ns for file in record.manifest.files)


def in_order(record: ArchiveRecord) -> tuple[bool, int, int, str]:
    """To sort by: by step; what has none comes last, by time; a step written twice in the order of writing."""
    manifest = record.manifest
    return manifest.step is None, manifest.step or 0, written(record), record.path.name


def counted_as(record: ArchiveRecord) -> int | str:
    """Its step; its name where it has none. Archives that are counted alike count once."""
    return record.path.name if record.manifest.step is None else record.manifest.step


def next_references(records: Sequence[ArchiveRecord], stride: int) -> set[Path]:
    """What the next checkpoints may be deltas against: the newest `stride` of each series that has not ended.

    Ruined ones do not count. A single archive that another series went on from was no series: a run that gives every
    checkpoint a name of its own keeps the newest alone.
    """
    usable = [record for record in records if not is_ruined(record)]
    live = {record.path for record in sorted(usable, key=written)[-LIVE_ARCHIVES:]}
    continued = {record.manifest.reference for record in usable}
    kept: set[Path] = set()
    for series in by_series(usable).values():
        is_over = len(series) == 1 and series[0].manifest.reconstruction in continued
        if not is_over and not live.isdisjoint(record.path for record in series):
            kept.update(record.path for record in series[-stride:])
    return kept


def within_depth(newest: ArchiveRecord, records: Sequence[ArchiveRecord], max_depth: int) -> ArchiveRecord | None:
    """What a new archive is a delta against, so that no chain gets deeper: the newest, as long as that allows it.

    Else where its branch began, one link deeper than the branch before did: the new archive begins the next one. So
    a chain costs nothing until it is `max_depth` deep, and some max_depth**2 / 2 archives hang on one base. None, for a
    new base, where branches begin as deep as they may. A branch begins at a base, at what is a delta against another
    series, or where an older archive of its series is a delta against the same reference. `newest` has its chain among
    `records`.
    """
    if newest.manifest.depth < max_depth:
        return newest
    references = references_in(records)
    own = _paths_of_its_series(newest, records)
    dependents = Counter(reference.path for path, reference in references.items() if reference and path in own)
    start, reference = newest, references[newest.path]
    while reference is not None and reference.path in own and dependents[reference.path] == 1:
        start, reference = reference, references[reference.path]
    return start if start.manifest.depth < max_depth else None


def _paths_of_its_series(record: ArchiveRecord, records: Sequence[ArchiveRecord]) -> set[Path]:
    groups = ({other.path for other in group} for group in by_series(records).values())
    return next(paths for paths in groups if record.path in paths)

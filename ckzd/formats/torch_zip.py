"""torch.save files (the zip format, torch >= 1.6) and TorchScript's: one hole a storage or view, else verbatim."""

import zlib
from collections.abc import Callable, Iterator

from ckzd.errors import BadCheckpoint
from ckzd.fingerprints import DIGITS, Fingerprint, digits
from ckzd.formats import inert_pickle
from ckzd.formats.parsed import SMALL_STORAGE_BYTES, Found, ParsedFile, collect, opaque
from ckzd.formats.source import FileView
from ckzd.formats.storages import Place, tensors_in
from ckzd.formats.survey import Survey, most_updates, survey
from ckzd.formats.tree import Mapping, Node, TensorRef
from ckzd.formats.zip_records import Record, read_records

Unpickled = Callable[[bytes, str], Node]  # `inert_pickle.load`, or what remembers what it gave
ID = "/.data/serialization_id"  # what torch calls the record of the fingerprint
MAX_SMALL_PICKLE_BYTES = 16 << 20  # larger ones take seconds to read, and hold nothing that is looked for in them
MAX_VERBATIM_RECORD_BYTES = 1 << 20  # longer records beside the pickle are opaque holes


def parse(view: FileView, unpickled: Unpickled = inert_pickle.load, *, least: int = SMALL_STORAGE_BYTES) -> ParsedFile:
    """Read everything but the tensors' bytes. BadCheckpoint for what torch.save would not have written."""
    records, prefix, root = _opened(view, unpickled)
    subject = f"{view.subject}/data.pkl"
    facts = survey(root, subject)
    found, optimizers = tensors_in(facts, _places(view, facts, records, prefix, subject), view, subject)
    everything = [*found, *_others(facts, records, prefix)]
    return collect(everything, view.subject, view.size, optimizers, facts.step, least=least)


def load(view: FileView, unpickled: Unpickled = inert_pickle.load) -> Node:
    """What was saved, without the tensors' bytes; BadCheckpoint as `parse`."""
    return _opened(view, unpickled)[2]


def small_mapping(view: FileView) -> Mapping | None:
    """What was saved, if that is a mapping and is read in a moment; else None. BadCheckpoint as `parse`."""
    pickles = [record for record in read_records(view) if record.name.endswith("/data.pkl")]
    if len(pickles) != 1 or pickles[0].nbytes > MAX_SMALL_PICKLE_BYTES:
        return None
    root = load(view)
    return root if isinstance(root, Mapping) else None


def number(view: FileView, unpickled: Unpickled = inert_pickle.load) -> int | None:
    """The count that was saved, alone, as a number or a tensor of one element; None of anything else."""
    records, prefix, root = _opened(view, unpickled)

    def read(tensor: TensorRef) -> bytes | None:
        record = records.get(f"{prefix}/data/{tensor.storage.key}")
        if record is None or record.nbytes != tensor.storage.elements * tensor.element_bytes:
            return None
        return view.read(record.offset + tensor.offset * tensor.element_bytes, tensor.element_bytes)

    return most_updates([root], read)


def _opened(view: FileView, unpickled: Unpickled) -> tuple[dict[str, Record], str, Node]:
    """The records by name, what their names begin with, and the tree that is pickled among them."""
    records = {record.name: record for record in read_records(view)}
    prefix = next(iter(records), "").split("/", 1)[0]
    pickled = records.get(f"{prefix}/data.pkl")
    if pickled is None:
        raise BadCheckpoint(view.subject, "a zip without data.pkl: torch.save did not write it")
    if pickled.nbytes > inert_pickle.MAX_PICKLE_BYTES:
        raise BadCheckpoint(view.subject, f"data.pkl of {pickled.nbytes} bytes is too large")
    _require_stored(pickled, view.subject)
    _require_little_endian(view, records.get(f"{prefix}/byteorder"))
    return records, prefix, unpickled(_checked(view, pickled), f"{view.subject}/data.pkl")


def _checked(view: FileView, record: Record) -> bytes:
    """All bytes of a record. Tensors are held against their CRC-32 where they are read; torch may leave it 0."""
    data = view.read(record.offset, record.nbytes)
    if record.crc and zlib.crc32(data) != record.crc:
        problem = f"zip record {record.name!a}: CRC-32 expected {record.crc:08x}, got {zlib.crc32(data):08x}"
        raise BadCheckpoint(view.subject, problem, hint="the file is damaged; restore it from another copy")
    return data


def _require_stored(record: Record, subject: str) -> None:
    if record.is_deflated:
        problem = f"zip record {record.name[-80:]!a}: expected stored as it is, got compressed"
        raise BadCheckpoint(subject, problem, hint="torch did not write it so; load it and save it again with torch")


def _require_little_endian(view: FileView, record: Record | None) -> None:
    if record is None:
        return
    found = view.read(record.offset, min(record.nbytes, 16))
    if found != b"little":
        problem = f"byte order: expected 'little', got {found.decode('ascii', 'backslashreplace')!a}"
        hint = "load it and save it again on a little-endian machine"
        raise BadCheckpoint(view.subject, problem, hint=hint)


def _fingerprint(view: FileView, records: dict[str, Record], storage: Record) -> Fingerprint | None:
    """Where the file has one that follows from its only storage; None if it is not as torch makes it."""
    *others, last = records.values()  # in the order in which they were written
    if not last.name.endswith(ID) or last.nbytes != 2 * DIGITS or not last.crc_offsets:
        return None
    place = others.index(storage)
    before, after = (tuple(record.crc for record in some) for some in (others[:place], others[place + 1 :]))
    data = view.read(last.offset, last.nbytes)
    if data[DIGITS:] != digits((*before, storage.crc, *after)) or zlib.crc32(data) != last.crc:
        return None
    return Fingerprint(last.offset + DIGITS, last.crc_offsets, before, after)


def _places(view: FileView, facts: Survey, records: dict[str, Record], prefix: str, subject: str) -> dict[str, Place]:
    """Where the storages lie that any tensor refers to."""
    places: dict[str, Place] = {}
    for key in facts.uses:
        record = records.get(f"{prefix}/data/{key}")
        if record is None:
            raise BadCheckpoint(subject, f"storage {key[:80]!a} has no record in the zip")
        _require_stored(record, subject)
        is_only = len(facts.uses) == 1 and record.crc_offsets != ()
        fingerprint = _fingerprint(view, records, record) if is_only else None
        places[key] = Place(record.offset, record.nbytes, record.crc_offsets, fingerprint)
    return places


def _others(facts: Survey, records: dict[str, Record], prefix: str) -> Iterator[Found]:
    """Storages that nobody refers to, and long records that are neither pickle nor storage."""
    storages = f"{prefix}/data/"
    for name, record in records.items():
        short = name.removeprefix(f"{prefix}/")
        if name.startswith(storages):
            if name.removeprefix(storages) not in facts.uses:
                yield from opaque(("<record>", short), record.offset, record.nbytes)
        elif record.nbytes > MAX_VERBATIM_RECORD_BYTES and short != "data.pkl":
            yield from opaque(("<record>", short), record.offset, record.nbytes)

"""Changed inputs for every reader of what others wrote: each is refused or read, in bounded time and memory.

    python tests/crash/fuzz.py [--count N] [--seed N] [--reader NAME]...

Input number n of a reader follows from the seed and n alone: `--seed S --only N` does one again. Wrong are any other
exception than those of ckzd, more than a second of CPU time, more memory than MEGABYTES, and a wrong answer: tensors
that do not lie in their file, an archive that passes as whole though a byte of it is another. Exit status 1 then.
"""

import argparse
import hashlib
import json
import logging
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

from damaged.inputs import ONE_TENSOR, TORCH_RECORDS, make_zip, torch_file
from making import put_chain

from ckzd import formats
from ckzd.archive import ArchiveReader
from ckzd.config import load
from ckzd.daemon.identity import Identity
from ckzd.daemon.journal import Journal
from ckzd.daemon.protect import Protection
from ckzd.daemon.settle import FormatsRule
from ckzd.errors import CkzdError
from ckzd.operations.ledger import Ledger
from ckzd.operations.pointer import pointer_text, read_pointer
from ckzd.store import Store

MAX_SECONDS = 1.0
MEGABYTES = 1500
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1)
WORDS = ("{", "}", "[", "]", '"', "null", "1e999", "-1", "9" * 400, "\\ud800", "\0", "../" * 40, "//", "nan")


class Wrong(Exception):
    """Read, but not rightly."""


@dataclass(frozen=True)
class Reader:
    """What reads a file, and files that it reads well."""

    read: Callable[[Path], None]
    name: str  # of the file
    inputs: tuple[bytes, ...]
    wrap: Callable[[bytes], bytes] = bytes  # around what is changed, where it would be found by a checksum else


def changed(data: bytes, draw: random.Random) -> bytes:
    """One to four changes, of the kinds that disks, writers and people make."""
    made = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at = draw.randrange(len(made) + 1)
        match draw.randrange(8):
            case 0 if at < len(made):
                made[at] ^= 1 << draw.randrange(8)
            case 1 if at < len(made):
                made[at] = draw.choice((0, 1, 0x2E, 0x7F, 0x80, 0xFF, draw.randrange(256)))
            case 2:
                width = draw.choice((1, 2, 4, 8))
                made[at : at + width] = (draw.choice(EXTREMES) % (1 << 8 * width)).to_bytes(width, "little")
            case 3:
                del made[at : at + draw.choice((1, 1, 4, 16, 100))]
            case 4:
                made[at:at] = draw.randbytes(draw.choice((1, 1, 4, 16)))
            case 5:
                begin = draw.randrange(len(made) + 1)
                made[at:at] = made[begin : begin + draw.choice((1, 8, 64))] * draw.choice((1, 2, 50))
            case 6:
                made[at:at] = draw.choice(WORDS).encode("utf-8", "surrogatepass")
            case _:
                del made[at:]
    return bytes(made)


def _checkpoint(path: Path) -> None:
    """Its tensors and the bytes around them are the file, each byte once."""
    formats.completeness(path)
    checkpoint = formats.read_whole(path)
    with closing(checkpoint.source):
        data, (file,) = path.read_bytes(), checkpoint.files
        around = [data[start:end] for start, end in file.verbatim_ranges()]
        tensors = [checkpoint.source.read(0, hole.offset, hole.nbytes) for hole in file.holes]
        if sum(map(len, around)) + sum(map(len, tensors)) != len(data):
            raise Wrong("tensors and the bytes around them are not the file")
        if checkpoint.sha256() != (hashlib.sha256(data).hexdigest(),):
            raise Wrong("its sha256 is another")


def _archive(path: Path, whole: bytes) -> None:
    with ArchiveReader(path) as reader:
        reader.check()
    if path.read_bytes() != whole:
        raise Wrong("passes as whole")


def _journal(path: Path) -> None:
    for other in path.parent.glob("journal*"):
        if other != path:
            other.unlink()
    journal = Journal(path)
    try:
        journal.rows()
        journal.see(Path("/run"), Path("/run/step_9.pt"), Identity(9, 9, 9), 9.0)
    finally:
        journal.close()


def _ledger(path: Path) -> None:
    ledger = Ledger.read(Store(path.parent))
    ledger.progress([Path("/a/b.ckz")], 1.0)


def _marker(path: Path) -> None:
    run = path.parent.parent if path.name == "trainer_state.json" else path.parent
    Protection(FormatsRule()).held(run, run, [])
    formats.look_into(run)


def _readers(place: Path) -> dict[str, Reader]:
    store = Store.open_or_create(place / "made" / ".ckzd")
    (place / "made" / "run").mkdir()
    archive = put_chain(store, place / "made" / "run", 1)[0]
    whole = archive.read_bytes()
    with ArchiveReader(archive) as reader:
        checkpoint = place / "made" / "run" / "step_100.pt"
        checkpoint.touch()
        pointer = pointer_text(checkpoint.with_name("step_100.pt.ckz"), checkpoint, archive, reader.manifest)
    config = '[[watch]]\npath = "/ckpts"\nreplace = true\nkeep_raw = 2\n[watch.keep]\nnewest = 3\n[daemon]\nport = 0\n'
    entry = {"mark": [1, 2, 3], "read": 1.0, "decoded": 0.0, "problem": "", "made": None}
    ledger = {"version": 1, "pass_began": 1.0, "pass_completed": 0.0, "archives": {"a/b.ckz": entry}}
    state = {"global_step": 10, "best_model_checkpoint": "out/checkpoint-10", "log_history": [{"loss": 1.5}]}
    index = {"metadata": {"total_size": 1}, "weight_map": {"w": "model-00001-of-00001.safetensors"}}
    return {
        "zip": Reader(_checkpoint, "step_1.pt", (torch_file(),)),
        "pickle": Reader(_checkpoint, "step_1.pt", (ONE_TENSOR, *_pickles()), _as_data_pkl),
        "old torch": Reader(_checkpoint, "step_1.pth", _old()),
        "safetensors": Reader(_checkpoint, "step_1.safetensors", (_safetensors(),)),
        "archive": Reader(partial(_archive, whole=whole), "a.ckz", (whole,)),
        "pointer": Reader(lambda path: void(read_pointer(path)), "step_1.pt.ckz", (pointer.encode(),)),
        "journal": Reader(_journal, "journal.sqlite", (_a_journal(place),)),
        "ledger": Reader(_ledger, "checked.json", (json.dumps(ledger).encode(),)),
        "configuration": Reader(lambda path: void(load(path)), "ckzd.toml", (config.encode(),)),
        "trainer state": Reader(_marker, "trainer_state.json", (json.dumps(state).encode(),)),
        "latest": Reader(_marker, "latest", (b"global_step10", b"step_10.pt\n")),
        "index": Reader(_marker, "model.safetensors.index.json", (json.dumps(index).encode(),)),
    }


def void(_: object) -> None:
    """What was read is of no interest."""


def _as_data_pkl(data: bytes) -> bytes:
    return make_zip([replace(TORCH_RECORDS[0], data=data), *TORCH_RECORDS[1:]])


def _pickles() -> Iterator[bytes]:
    import collections
    import pickle

    nested = {"a": [1, 2.5, None, True, "x" * 300, (1, 2, 3)], "b": collections.OrderedDict(c={1: b"y"})}
    for protocol in (2, 4):
        yield pickle.dumps(nested, protocol)


def _old() -> tuple[bytes, ...]:
    import torch

    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings(action="ignore"):
        torch.save({"w": torch.zeros(10, 10)}, f"{place}/x", _use_new_zipfile_serialization=False)
        return (Path(place, "x").read_bytes(),)


def _safetensors() -> bytes:
    tensors = {"w": {"dtype": "F32", "shape": [10, 10], "data_offsets": [0, 400]}}
    tensors["v"] = {"dtype": "BF16", "shape": [8], "data_offsets": [400, 416]}
    header = json.dumps(tensors).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + bytes(416)


def _a_journal(place: Path) -> bytes:
    file = place / "made" / "journal.sqlite"
    journal = Journal(file)
    for number in range(3):
        journal.see(Path("/run"), Path(f"/run/step_{number}.pt"), Identity(number, 1000, 5), now=1.0)
    journal.close()
    return file.read_bytes()


def try_one(reader: Reader, place: Path, data: bytes) -> tuple[str, str]:
    """ "read", "refused" or "wrong", and what is."""
    path = place / reader.name
    if reader.name == "trainer_state.json":
        path = place / "checkpoint-10" / reader.name
        path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    began, outcome, why = time.process_time(), "read", ""
    try:
        reader.read(path)
    except CkzdError as error:
        outcome, why = "refused", str(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, it should not be
        outcome, why = "wrong", f"{type(error).__name__}: {error}"
    if (seconds := time.process_time() - began) > MAX_SECONDS:
        outcome, why = "wrong", f"{why} {seconds:.1f} s"
    return outcome, why


def fuzz(name: str, reader: Reader, place: Path, numbers: Iterator[int], seed: int) -> int:
    """Print what came of so many inputs; how many went wrong."""
    for data in reader.inputs:
        if (said := try_one(reader, place, reader.wrap(data))) != ("read", ""):
            raise SystemExit(f"{name}: what nobody changed: {said}")
    counts: Counter[str] = Counter()
    slowest, began = 0.0, time.monotonic()
    for number in numbers:
        draw = random.Random(f"{seed} {name} {number}")
        data = reader.wrap(changed(draw.choice(reader.inputs), draw))
        before = time.process_time()
        outcome, why = try_one(reader, place, data)
        slowest = max(slowest, time.process_time() - before)
        counts[outcome] += 1
        if outcome == "wrong":
            print(f"  {name}, input {number}: {why[:300]}", flush=True)
    print(
        f"{name}: {counts.total()} inputs (seed {seed}): {counts['refused']} refused, {counts['read']} read,"
        f" {counts['wrong']} wrong; the slowest took {slowest:.2f} s; {time.monotonic() - began:.0f} s",
        flush=True,
    )
    return counts["wrong"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000, help="inputs of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", help="only this one")
    parser.add_argument("--only", type=int, help="only the input of this number")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    wrong = 0
    with tempfile.TemporaryDirectory(dir=memory, prefix="ckzd-fuzz-") as made:
        place = Path(made)
        readers = {n: r for n, r in _readers(place).items() if not arguments.reader or n in arguments.reader}
        resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES << 20, MEGABYTES << 20))
        for name, reader in readers.items():
            work = place / "work"
            work.mkdir()
            each = arguments.count // len(readers)
            numbers = range(each) if arguments.only is None else [arguments.only]
            wrong += fuzz(name, reader, work, iter(numbers), arguments.seed)
            with suppress(OSError):
                shutil.rmtree(work)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

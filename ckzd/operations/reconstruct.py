"""Archives -> reconstructions and decoders: follows chains, uses and checks the cache.

A reconstruction in the cache is believed only if its bytes hash to its id. Without it the chain is decoded, base first,
one link at a time, each into a temporary file that replaces the one before.
"""

import os
import tempfile
from collections.abc import Container, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import BinaryIO

from ckzd import durable
from ckzd.archive import ArchiveReader
from ckzd.assembly import assembled
from ckzd.chains import ArchiveRecord, chain
from ckzd.checkpoint import Bytes, sha256_of
from ckzd.codec import zstd
from ckzd.codec.ahead import Ahead
from ckzd.codec.decode import MALFORMED, Decoder
from ckzd.codec.parallel import in_order
from ckzd.codec.records.index import MAX_INDEX_BYTES, Index
from ckzd.codec.records.layout import Layout
from ckzd.codec.records.needed import Followed, needed
from ckzd.codec.records.reconstruction import Key, Reconstruction, ReconstructionWriter
from ckzd.codec.records.reference_tensors import seal
from ckzd.codec.records.skeleton import skeleton_bytes, split_skeleton
from ckzd.errors import CkzdError, CorruptArchive
from ckzd.operations.base_model import write_reconstruction
from ckzd.pace import blocks
from ckzd.store import Store


@contextmanager
def malformed_as_corrupt(archive: Path) -> Iterator[None]:
    """Whatever the codec says of bad bytes, with the archive's name."""
    try:
        yield
    except MALFORMED as error:
        problem = f"a stream cannot be decoded: {error}"
        raise CorruptArchive(archive, problem) from error
    except MemoryError as error:
        raise CkzdError(archive, "a tensor of it does not fit into memory", hint="use a larger machine") from error


def store_of(archive: Path) -> Store | None:
    """The store that the archive lies in, published or not, or None: a folder of copied archives works without one."""
    with suppress(OSError):
        for place in archive.resolve().parents[2:0:-1]:  # of STORE/archives/RUN/, and of STORE/tmp/
            with suppress(CkzdError, OSError):
                return Store.open(place)
    return None


@contextmanager
def scratch_file(store: Store | None) -> Iterator[BinaryIO]:
    """A nameless file for reading and writing, on the store's disk if there is one that lets us write."""
    place = store.tmp if store is not None and store.is_writable() else Path(tempfile.gettempdir())
    with durable.as_no_space(place), tempfile.TemporaryFile(dir=place, buffering=0) as raw, durable.Paced(raw) as file:
        yield file


@contextmanager
def cached(store: Store | None, identity: str) -> Iterator[Reconstruction | None]:
    """The reconstruction with this id from the cache, hash-checked; None if it is not there or not whole."""
    path = store.cache_path(identity) if store is not None else None
    if path is None or not os.access(path, os.R_OK):  # another user's cache is not for us
        yield None
        return
    with path.open("rb") as file:
        if _hashes_to(file, identity):
            with malformed_as_corrupt(path):
                found = Reconstruction(file)
            yield found
            return
    with suppress(OSError):  # on a read-only file system it stays, and is refused each time
        durable.remove(path)
    yield None


def _hashes_to(file: BinaryIO, identity: str) -> bool:
    return sha256_of(blocks(file)) == identity


@contextmanager
def reconstruction_of(
    record: ArchiveRecord, store: Store | None, files: Container[int] | None = None
) -> Iterator[Reconstruction]:
    """What the dependents of this archive need, from its store's cache, if it has one, or by decoding its chain.

    Of `files`, by number, if they are given, no more has to be in it than what they restore from.
    """
    with cached(store, record.manifest.reconstruction) as found:
        if found is not None:
            yield found
            return
    with _decoded(store, chain(record), files) as found:
        yield found


@contextmanager
def reconstruction_or_none(reference: Path | None) -> Iterator[Reconstruction | None]:
    """The reconstruction of a reference that a process was told by its path; None of none."""
    if reference is None:
        yield None
        return
    with reconstruction_of(ArchiveRecord.read(reference), store_of(reference)) as found:
        yield found


@contextmanager
def _decoded(store: Store | None, links: list[ArchiveRecord], files: Container[int] | None) -> Iterator[Reconstruction]:
    """The last link's reconstruction, decoded from the nearest that is cached, two of them on disk at a time."""
    with ExitStack() as cache:
        found, rest = _nearest_cached(store, links, cache)
        wanted: Iterable[AbstractSet[Key] | None] = repeat(None)
        needs_model = found is None and rest and rest[0].manifest.base_model is not None
        if rest and files is not None and not needs_model:  # a model is read whole
            wanted = _needed(rest, found, files)
        held = cache.pop_all()
    with _in_turn(_links(rest), wanted, found, held, store) as found:
        assert found is not None, "a chain has at least one link"
        yield found


def _links(archives: Iterable[ArchiveRecord]) -> Iterator[ArchiveReader]:
    """Those that these archives carry, too."""
    for archive in archives:
        with ArchiveReader(archive.path) as reader:
            yield from reader.links()


@contextmanager
def _in_turn(
    links: Iterable[ArchiveReader],
    wanted: Iterable[Container[Key] | None],
    found: Reconstruction | None,
    held: ExitStack,
    store: Store | None,
) -> Iterator[Reconstruction | None]:
    """The last one's reconstruction, each decoded against the one before, the first against `found`; `held` keeps that.

    The one before goes when its dependent is decoded. See `decode_link` for what is `wanted` of each.
    """
    try:
        for link, only in zip(links, wanted, strict=False):
            with ExitStack() as following, held:
                found = decode_link(link, found, following.enter_context(scratch_file(store)), only)
                decoded = following.pop_all()
            held = decoded
        yield found
    finally:
        held.close()


def _nearest_cached(
    store: Store | None, links: list[ArchiveRecord], held: ExitStack
) -> tuple[Reconstruction | None, list[ArchiveRecord]]:
    """The newest cached reconstruction of a chain, opened in `held`, and the links after it."""
    for position in range(len(links) - 1, -1, -1):
        found = held.enter_context(cached(store, links[position].manifest.reconstruction))
        if found is not None:
            return found, links[position + 1 :]
    return None, links


def _needed(
    links: Sequence[ArchiveRecord], reference: Reconstruction | None, files: Container[int]
) -> Sequence[AbstractSet[Key]]:
    """Of each link, decoded from `reference` on, the reference tensors that these files of the last restore from."""
    layout, followed = _blob(reference, "layout"), []
    for reader in _links(links):
        with malformed_as_corrupt(reader.path):
            index = Index.from_bytes(_entry(reader, "index"), layout, reader.manifest.original_bytes)
            _check_files(reader, index.layout)
            followed.append(Followed.of(index, sees_layers=bool(_entry(reader, "lstm"))))
        layout = index.layout.to_json()
    own = [file for number, file in enumerate(index.layout.files) if number in files]
    with malformed_as_corrupt(links[-1].path):
        return needed(followed, index, [hole.tensor for file in own for hole in file.holes])


def decode_archive(reader: ArchiveReader, reference: Reconstruction | None, file: BinaryIO) -> Reconstruction:
    """Decode an archive, and first what it carries, the base of these against `reference`; else as `decode_link`."""
    with _in_turn(reader.carried(), repeat(None), reference, ExitStack(), store_of(reader.path)) as before:
        return decode_link(reader, before, file)


def decode_link(
    reader: ArchiveReader, reference: Reconstruction | None, file: BinaryIO, only: Container[Key] | None = None
) -> Reconstruction:
    """Decode one archive's kept tensors into `file`; raises CorruptArchive unless they hash to the recorded id.

    Without a reference it is a base, or a delta against a base model, which is read then. With `only` some of them, see
    `Decoder.decode_reference_tensors`: nothing but what is restored tells if these are right.
    """
    named = reader.manifest.base_model
    if reference is not None or named is None:
        return _decode_against(reader, reference, file, only)
    with scratch_file(store_of(reader.path)) as held:
        with malformed_as_corrupt(reader.path):
            model = write_reconstruction(reader, named, held)
        return _decode_against(reader, model, file, only)


def _decode_against(
    reader: ArchiveReader, reference: Reconstruction | None, file: BinaryIO, only: Container[Key] | None
) -> Reconstruction:
    with malformed_as_corrupt(reader.path):
        decoder = decoder_from_reference(reader, reference)
        writer = ReconstructionWriter(file)
        decoder.decode_reference_tensors(writer, only)
        identity = _identity(reader, decoder, reference, writer)
    if only is None and identity != reader.manifest.reconstruction:
        problem = f"decodes to reconstruction {identity}, expected {reader.manifest.reconstruction}"
        raise CorruptArchive(reader.path, problem, hint="its reference is not the one that it was made against")
    return Reconstruction(file)


def foreseen(
    reader: ArchiveReader, reference: Reconstruction | None, ahead: Ahead, written: BinaryIO
) -> Reconstruction | None:
    """What `ahead` restored, if the archive's streams say what was announced; read from what the encoder has `written`.

    None if they say something else or that is not it: then the archive must be decoded as any other. So must a delta
    against a base model, and what carries others, of which nothing is announced.
    """
    if reader.manifest.base_model is not None or reader.manifest.carried:
        return None
    with malformed_as_corrupt(reader.path):
        decoder = decoder_from_reference(reader, reference)
        if not ahead.foresaw(decoder.fingerprints()):
            return None
        if _identity(reader, decoder, reference, ahead.own) != reader.manifest.reconstruction:
            return None  # of what others followed something was read otherwise than it stands in the file
    written.seek(0)
    if not _hashes_to(written, reader.manifest.reconstruction):
        return None
    own = Reconstruction(written)
    return own if ahead.followed_what_is_in(own) else None


def _identity(
    reader: ArchiveReader, decoder: Decoder, reference: Reconstruction | None, writer: ReconstructionWriter
) -> str:
    """The id of what was put into `writer`, which is closed."""
    limit = min(MAX_INDEX_BYTES, skeleton_bytes(decoder.index.layout.files))
    skeleton = zstd.decompress(reader.read("skeleton"), limit, _blob(reference, "skeleton"))
    return seal(writer, decoder.lstm, skeleton, decoder.index.layout.to_json())


def _blob(reference: Reconstruction | None, field: str) -> bytes:
    return reference.blob(field) if reference is not None else b""


def decoder_from_reference(reader: ArchiveReader, reference: Reconstruction | None) -> Decoder:
    """A decoder of everything in the archive."""
    original_bytes = reader.manifest.original_bytes
    decoder = Decoder.from_reference(lambda name: _entry(reader, name), reader.stream, reference, original_bytes)
    _check_files(reader, decoder.index.layout)
    return decoder


def _check_files(reader: ArchiveReader, layout: Layout) -> None:
    """The manifest bounds what the index may claim."""
    if [(file.name, file.size) for file in layout.files] != [(f.name, f.size) for f in reader.manifest.files]:
        raise CorruptArchive(reader.path, "the index and the manifest do not name the same files")


class OpenCheckpoint:
    """The files of an archived checkpoint, to be read out in order: its reader and its own reconstruction."""

    def __init__(self, reader: ArchiveReader, own: Reconstruction) -> None:
        self._own = own
        self.archive, self.manifest = reader.path, reader.manifest
        with malformed_as_corrupt(reader.path):
            self.decoder = Decoder.from_own(lambda name: _entry(reader, name), reader.stream, own)
            self.layout = self.decoder.index.layout
            self.verbatim = split_skeleton(own.blob("skeleton"), self.layout.files)
        _check_files(reader, self.layout)

    def files(self, numbers: Sequence[int]) -> Iterator[tuple[int, Bytes]]:
        """The restored bytes of numbered files, each in order, with its place in `numbers`.

        CorruptArchive if they cannot be decoded.
        """
        payloads = partial(in_order, self.payload, elements=lambda tensor: self.layout.tensors[tensor].elements)
        layouts, verbatim = zip(*((self.layout.files[n], self.verbatim[n]) for n in numbers), strict=True)
        with malformed_as_corrupt(self.archive):
            yield from assembled(layouts, verbatim, payloads)

    def payload(self, tensor: int) -> Bytes:
        """A tensor's restored bytes; CorruptArchive if they cannot be decoded."""
        with malformed_as_corrupt(self.archive):
            data = self.decoder.payload(tensor, self._own)
            if len(data) != self.layout.tensors[tensor].nbytes:
                expected = self.layout.tensors[tensor].nbytes
                raise ValueError(f"tensor {tensor} decodes to {len(data)} bytes, expected {expected}")
        return data


def _entry(reader: ArchiveReader, name: str) -> bytes:
    return reader.read(name) if name in reader.entries() else b""

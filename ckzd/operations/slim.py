"""Drop an archive's moments: an optimizer's state is most of its bytes, and hardly wanted of an old checkpoint.

The archive without them is written to STORE/tmp, read back from disk, compared, and takes the place of the whole one in
one step. What depends on it needs the same tensors as before, and finds them.
"""

import os
from pathlib import Path

from ckzd import durable
from ckzd.access import Access, give
from ckzd.archive import ArchiveReader
from ckzd.archive.container import weights_alone
from ckzd.archive.dropping import without_moments
from ckzd.archive.manifest import Manifest, is_of_moments
from ckzd.chains import read_manifest
from ckzd.errors import CorruptArchive
from ckzd.page_cache import forget_file
from ckzd.store import Store


def drop_moments(store: Store, archive: Path, day: str) -> int:
    """Rewrite it; bytes on disk that this frees. Raises CorruptArchive, and leaves it as it is, if it is damaged.

    Whoever calls holds the store alone.
    """
    temp, before = store.new_temp(".ckz"), archive.stat()
    try:
        write_without_moments(archive, temp, day)
        give(temp, Access.of(before))
        os.utime(temp, ns=(before.st_mtime_ns, before.st_mtime_ns))  # it is as old as it was
        durable.overwrite(temp, archive)
    finally:
        durable.remove(temp)
    return durable.disk_bytes(before) - durable.disk_bytes(archive.stat())


def write_without_moments(archive: Path, temp: Path, day: str) -> None:
    """What is left of an archive without its moments, written to `temp` and read back. Raises as `drop_moments`."""
    durable.require_space(temp, archive.stat().st_size)
    with ArchiveReader(archive) as reader, durable.as_no_space(temp), durable.create(temp) as file:
        reader.check()
        without_moments(reader, file, day)
        file.flush()
        os.fsync(file.fileno())
    forget_file(temp)
    with ArchiveReader(temp) as slim:
        slim.check()
        rest = [entry for entry in reader.manifest.entries if not is_of_moments(entry.name)]
        if slim.manifest.entries != rest or slim.manifest.reconstruction != reader.manifest.reconstruction:
            raise CorruptArchive(temp, "is not what was to be left of its archive", hint="report this")


def has_dropped_moments(archive: Path) -> bool:
    """Whether it gives weights alone. Raises CorruptArchive."""
    return read_manifest(archive).moments_dropped is not None


def require_moments(archive: Path, manifest: Manifest) -> None:
    """Raise ConfigError, saying since when, where an archive gives weights alone."""
    if manifest.moments_dropped is not None:
        raise weights_alone(archive, manifest.moments_dropped)

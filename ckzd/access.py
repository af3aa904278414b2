"""Who may read a checkpoint, and the same for what stands for it: owner, group, and who else.

An archive lies in another directory than its original, and may be written by another user: so what counts is the file's
own mode together with the directories above it, and a group that cannot be given gets nothing.
"""

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_UNCHANGED = -1  # to chown
_MAY_NOT = frozenset({errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


@dataclass(frozen=True, slots=True)
class Access:
    """Owner and group (-1: whoever writes it), and mode bits: the owner writes, others read at most."""

    uid: int
    gid: int
    mode: int


def access_to(files: Iterable[Path], *, place: Path) -> Access:
    """What somebody may at least do with every one of these files; for what lies below `place`.

    The directories that are above the files, but not above `place`, keep out whom they keep out. FileNotFoundError if
    a file is gone.
    """
    real = [file.parent.resolve() / file.name for file in files]
    found = [file.lstat() for file in real]
    own = {parent for file in real for parent in file.parents} - {place.resolve(), *place.resolve().parents}
    above = [directory.stat() for directory in own]
    uids, gids = {status.st_uid for status in found}, {status.st_gid for status in found}
    gid = gids.pop() if len(gids) == 1 else _UNCHANGED
    others = all(status.st_mode & stat.S_IROTH for status in found)
    others = others and all(status.st_mode & stat.S_IXOTH for status in above)
    group = others
    if gid != _UNCHANGED:
        enter = [status.st_mode & (stat.S_IXGRP if status.st_gid == gid else stat.S_IXOTH) for status in above]
        group = all(enter) and all(status.st_mode & stat.S_IRGRP for status in found)
    mode = stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP * group | stat.S_IROTH * others
    return Access(uids.pop() if len(uids) == 1 else _UNCHANGED, gid, mode)


def give(path: Path, access: Access) -> None:
    """Set owner and group as far as we may, then the mode: without its group, that has no right that all have not."""
    mode = access.mode
    if not _chown(path, access.uid, access.gid) and not _chown(path, _UNCHANGED, access.gid):
        others = mode & stat.S_IRWXO
        mode = (mode & ~stat.S_IRWXG) | (mode & stat.S_IRWXG & others << 3)
    path.chmod(mode)


def _chown(path: Path, uid: int, gid: int) -> bool:
    try:
        os.chown(path, uid, gid, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _MAY_NOT:
            raise
        return False
    return True

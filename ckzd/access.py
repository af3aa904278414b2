"""Who may read a checkpoint, and the same for what stands for it: owner, group, and who else.

An archive lies in another directory than its original, and may be written by another user: so what counts is the file's
own mode together with the directories above it, and a group that cannot be given gets nothing. An access control list
is not copied: mode bits take its place that give nobody what it withholds from somebody.
"""

import errno
import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_UNCHANGED = -1  # to chown
_ACL = "system.posix_acl_access"  # Linux: a word, then entries of tag, bits and id (linux/posix_acl_xattr.h)
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_USER, _ACL_GROUP_OBJ, _ACL_GROUP, _ACL_MASK = 0x02, 0x04, 0x08, 0x10
_MAY_NOT = frozenset({errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


@dataclass(frozen=True, slots=True)
class Access:
    """Owner and group (-1: whoever writes it), and mode bits: the owner writes, others read at most."""

    uid: int
    gid: int
    mode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """As a file of ours has it, which gives no more than its mode says."""
        return cls(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))


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
    modes = [plain_mode(file, status) for file, status in zip(real, found, strict=True)]
    doors = [(plain_mode(directory, status), status.st_gid) for directory, status in zip(own, above, strict=True)]
    others = all(mode & stat.S_IROTH for mode in modes) and all(door & stat.S_IXOTH for door, _ in doors)
    group = others
    if gid != _UNCHANGED:
        enter = [door & (stat.S_IXGRP if owner == gid else stat.S_IXOTH) for door, owner in doors]
        group = all(enter) and all(mode & stat.S_IRGRP for mode in modes)
    mode = stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP * group | stat.S_IROTH * others
    return Access(uids.pop() if len(uids) == 1 else _UNCHANGED, gid, mode)


def plain_mode(path: Path, status: os.stat_result) -> int:
    """Mode bits (07777) that say at most what mode and access control list of a path say.

    With such a list the bits of the group are those of all that it names, and not the group's own: acl(5).
    """
    mode = stat.S_IMODE(status.st_mode)
    try:
        entries = list(_ACL_ENTRY.iter_unpack(os.getxattr(path, _ACL, follow_symlinks=False)[4:]))
    except (OSError, struct.error):  # none, or none that this kernel enforces
        return mode
    mask = next((bits for tag, bits, _ in entries if tag == _ACL_MASK), 0o7)
    group, others = mode >> 3 & 0o7, mode & 0o7
    for tag, bits, _ in entries:
        if tag in (_ACL_USER, _ACL_GROUP_OBJ):  # somebody named may be of the group
            group &= bits & mask
        if tag in (_ACL_USER, _ACL_GROUP):
            others &= bits & mask
    return mode & ~0o77 | group << 3 | others


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

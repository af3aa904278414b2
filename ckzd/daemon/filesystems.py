"""What kind of file system a path is on: which ones give inotify events and may hold SQLite's WAL."""

from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = frozenset(
    "acfs afs beegfs ceph cifs coda fhgfs glusterfs gpfs lustre ncp nfs nfs4 ocfs2 pvfs2 smb3 smbfs".split()  # noqa: SIM905
)
_SHARED = frozenset({"9p", "virtiofs"})


def kind(path: Path, mounts: Path = _MOUNTS) -> str:
    """The type of the mount that `path` lies (or would lie) on, "" when nobody can tell."""
    place = path.resolve()
    found, depth = "", -1
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    for line in lines:
        fields, _, tail = line.partition(" - ")
        mount = Path(_unescape(fields.split(" ")[4]))
        if place.is_relative_to(mount) and len(mount.parts) >= depth:  # a later mount covers an earlier one
            found, depth = tail.split(" ")[0], len(mount.parts)
    return found


def is_network(kind: str) -> bool:
    """A file server is behind it: SQLite's WAL does not work there."""
    return kind in _NETWORK


def gives_no_events(kind: str) -> bool:
    """Somebody else may write there and inotify is silent about it."""
    return is_network(kind) or kind in _SHARED or kind.startswith("fuse")


def _unescape(text: str) -> str:
    """Mount points write space, tab, newline and backslash in octal."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text

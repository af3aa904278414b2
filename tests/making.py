"""Hand-made archives: the container and the store need no codec."""

import hashlib
import io
from pathlib import Path

from ckzd.archive import ArchiveWriter, FileModel, Manifest, StatModel
from ckzd.archive.manifest import original_digest, restored_digest
from ckzd.store import Store


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_model(path: Path, name: str, *, tensors: int) -> FileModel:
    status, digest = path.stat(), sha256(path.read_bytes())
    return FileModel(
        name=name,
        size=status.st_size,
        mode=status.st_mode & 0o7777,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        original_sha256=digest,
        sha256=digest,
        tensors=tensors,
    )


def made_manifest(files: list[FileModel] | None = None, **changes) -> Manifest:
    """A manifest that agrees with itself; any field can be set."""
    if files is None:
        digest = sha256(b"abc")
        plain = {"mode": 0o100644, "uid": 1000, "gid": 1000, "mtime_ns": 1_700_000_000_000_000_000}
        name = changes.get("name", "step_100.pt")
        files = [FileModel(name=name, size=3, original_sha256=digest, sha256=digest, tensors=1, **plain)]
    fields = {
        "preset": "resume",
        "name": "step_100.pt",
        "kind": "file",
        "directory": None,
        "step": 100,
        "checkpoint": original_digest(files),
        "restored": restored_digest(files),
        "reconstruction": sha256(b"reconstruction"),
        "reference": None,
        "depth": 0,
        "original_bytes": sum(file.size for file in files),
        "parameters": 0,
        "parts": {"weights": 10, "index": 2},
        "coders": {"tables": 3, "raw": 1},
        "quality": {"kl": 1.5e-4, "promise": 1e-3},
        "tools": {"ckzd": "0.1.0"},
        "files": files,
    }
    return Manifest(**{**fields, **changes})


def manifest_of(checkpoint: Path, **changes) -> Manifest:
    """A true manifest of the checkpoint on disk; files named *.json and .metadata hold no tensors."""
    if checkpoint.is_dir():
        status = checkpoint.stat()
        paths = [
            p for p in sorted(checkpoint.rglob("*")) if p.is_file() and not p.is_symlink() and p.name != "ckzd.json"
        ]
        files = [
            file_model(p, p.relative_to(checkpoint).as_posix(), tensors=p.suffix != ".json" and p.name != ".metadata")
            for p in paths
        ]
        stat = StatModel(
            mode=status.st_mode & 0o7777, uid=status.st_uid, gid=status.st_gid, mtime_ns=status.st_mtime_ns
        )
        changes = {"kind": "directory", "directory": stat, **changes}
    else:
        files = [file_model(checkpoint, checkpoint.name, tensors=1)]
    return made_manifest(files, **{"name": checkpoint.name, **changes})


def archive_bytes(manifest: Manifest | None = None, streams: tuple[bytes, ...] = (b"first", b"second")) -> bytes:
    """An archive with an index, a skeleton and some streams of weights."""
    file = io.BytesIO()
    writer = ArchiveWriter(file)
    for stream in streams:
        writer.put("weights", stream)
    writer.add("index", b"the index")
    writer.add("skeleton", b"the skeleton")
    writer.finish(manifest or made_manifest())
    return file.getvalue()


def store_archive(store: Store, checkpoint: Path, *others: Path, **changes) -> Path:
    """Put the archive of a checkpoint on disk, with other files that are one with it, into the store."""
    manifest = manifest_of(checkpoint, **changes)
    if others:
        files = [file_model(path, path.name, tensors=1) for path in (checkpoint, *others)]
        manifest = made_manifest(files, name=checkpoint.name, kind="files", **changes)
    path = store.archive_path(checkpoint.parent, checkpoint.name, manifest.checkpoint)
    path.write_bytes(archive_bytes(manifest))
    return path


def tree_of(root: Path) -> dict[str, tuple]:
    """All that a user sees below `root`: name -> content or link, mode, owner, time."""
    found = {}
    for path in sorted([root, *root.rglob("*")]):
        status = path.lstat()
        content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        name = path.relative_to(root).as_posix()
        found[name] = (content, status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns)
    return found


def put(store: Store, run: Path, step: int | None, reference: str | None = None, **changes) -> Path:
    """An archive whose reconstruction is called after its step (or `reconstruction`) and that needs `reference`."""
    name = changes.pop("name", f"step_{step}.pt")
    content = sha256(f"{name}{changes.get('reconstruction', '')}{changes.pop('content', '')}".encode())
    plain = {"mode": 0o100644, "uid": 0, "gid": 0, "mtime_ns": changes.pop("mtime_ns", (step or 0) * 10**9)}
    files = [FileModel(name=name, size=3, original_sha256=content, sha256=sha256(content.encode()), tensors=1, **plain)]
    fields = {
        "name": name,
        "step": step,
        "reconstruction": sha256(str(changes.pop("reconstruction", name)).encode()),
        "reference": None if reference is None else sha256(reference.encode()),
        "depth": changes.pop("depth", 0 if reference is None else (step or 0) // 100),
    }
    manifest = made_manifest(files, **fields, **changes)
    path = store.archive_path(run, name, manifest.checkpoint)
    path.write_bytes(archive_bytes(manifest))
    return path


def put_chain(store: Store, run: Path, count: int) -> list[Path]:
    """step_0.pt is a base, each later one a delta against the one before."""
    return [put(store, run, n * 100, f"step_{n * 100 - 100}.pt" if n else None) for n in range(count)]

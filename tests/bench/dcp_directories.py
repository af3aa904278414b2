"""Directories in torch.distributed.checkpoint's layout, as many ranks would write them, made by one process."""

import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)


class Writer:
    """Puts items into the files of ranks, and says where in `.metadata`; both may be changed before `finish`."""

    def __init__(self, path: Path, ranks: int) -> None:
        path.mkdir(parents=True)
        self.path, self.ranks = path, ranks
        self.files = [(path / f"__{rank}_0.distcp").open("wb") for rank in range(ranks)]
        self.metadata = Metadata({}, None, {})

    def put(self, name: str, value: object, *, cut: int = 0) -> None:
        """A tensor in chunks along one of its dimensions, one a rank; or an object in the first rank's file."""
        if not isinstance(value, torch.Tensor):
            self._write(0, MetadataIndex(name), value)
            self.metadata.state_dict_metadata[name] = BytesStorageMetadata()
            return
        at = 0
        for rank, chunk in enumerate(torch.chunk(value, self.ranks, cut) if value.ndim else [value]):
            offset = torch.Size(at if axis == cut else 0 for axis in range(value.ndim))
            self.put_chunk(name, rank, offset, chunk, value.shape)
            at += chunk.shape[cut] if value.ndim else 0

    def put_chunk(self, name: str, rank: int, start: Sequence[int], chunk: torch.Tensor, shape: Sequence[int]) -> None:
        """What a rank has of a tensor of this shape, from `start` on."""
        offset = torch.Size(start)
        self._write(rank, MetadataIndex(name, offset), chunk.clone(memory_format=torch.contiguous_format))
        whole = TensorStorageMetadata(TensorProperties(dtype=chunk.dtype), torch.Size(shape), [])
        items = self.metadata.state_dict_metadata
        items.setdefault(name, whole).chunks.append(ChunkStorageMetadata(offset, chunk.shape))

    def _write(self, rank: int, index: MetadataIndex, value: object) -> None:
        file = self.files[rank]
        start = file.tell()
        region = io.BytesIO()
        torch.save(value, region)
        file.write(region.getvalue())
        self.metadata.storage_data[index] = _StorageInfo(f"__{rank}_0.distcp", start, file.tell() - start)

    def finish(self) -> Path:
        """`.metadata` last."""
        for file in self.files:
            file.close()
        (self.path / ".metadata").write_bytes(pickle.dumps(self.metadata))
        return self.path


def state_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, object]:
    """Flat names as `get_state_dict` with `flatten_optimizer_state_dict` and the planner make them."""
    names = [name for name, _ in model.named_parameters()]
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    kept = optimizer.state_dict()
    for number, name in enumerate(names):
        state |= {f"optimizer.state.{name}.{key}": value for key, value in kept["state"][number].items()}
    for name in names:
        group = kept["param_groups"][0]
        state |= {f"optimizer.param_groups.{name}.{key}": value for key, value in group.items() if key != "params"}
    return state


def trained(steps: int = 3, width: int = 64) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A small model after some steps, the same each time."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Tanh(), torch.nn.Linear(width, width))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.95))
    for _ in range(steps):
        model(torch.randn(8, width)).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def write_dcp(path: Path, ranks: int, state: Mapping[str, object]) -> Path:
    """A whole checkpoint."""
    writer = Writer(path, ranks)
    for name, value in state.items():
        writer.put(name, value)
    return writer.finish()

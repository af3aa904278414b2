"""Weights alone in numbered safetensors files, in a directory named after a step, with an index that is written last.

torch.distributed.checkpoint's HuggingFaceStorageWriter writes them (torchtitan's last step), and `save_pretrained`.
What each rank wrote before it was put together lies in `sharded/`. A model by another name is nobody's checkpoint.
"""

import re
from collections.abc import Set as AbstractSet
from pathlib import Path

from ckzd.formats.frameworks import hugging_face
from ckzd.formats.frameworks.framework import Framework
from ckzd.formats.names import SHARD_SUFFIX, TENSOR_SUFFIXES, labelled_step

INDEX = "model.safetensors.index.json"
SHARDED = "sharded"
_MODEL = re.compile(r"model-\d{5}-of-\d{5}\.safetensors", re.ASCII)


def recognises(path: Path, names: AbstractSet[str], folders: AbstractSet[str]) -> bool:
    """By the index, in a directory of a step without other tensors: nothing would say when those are there."""
    tensors = {name for name in names - folders if name.endswith((*TENSOR_SUFFIXES, SHARD_SUFFIX))}
    is_one = INDEX in names and labelled_step(path.name) is not None
    return is_one and folders <= {SHARDED} and all(map(_MODEL.fullmatch, tensors))


MODEL_INDEX = Framework("hugging_face", recognises, hugging_face.require_files, hugging_face.read)

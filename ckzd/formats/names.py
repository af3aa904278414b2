"""What file names say: the step, the order, and which names are never a checkpoint."""

import re

POINTER_SUFFIX = ".ckz"  # stands beside where a replaced file stood
POINTER_NAME = "ckzd.json"  # stands inside a replaced directory
TRAINER_STATE = "trainer_state.json"
INCOMPLETE_MARKER = "checkpoint-is-incomplete.txt"  # Hugging Face's just-in-time checkpoints remove it last

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".pth.tar")
# in a directory: files that torch.save may have written, or safetensors
TENSOR_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar", ".pkl", ".safetensors")

_HUGGING_FACE = re.compile(r"checkpoint-(\d{1,18})", re.ASCII)
_TEMPORARY = re.compile(
    r"\..*|tmp[.-].*|recovery_tmp.*|.*\.(tmp|part|partial|lock)|.*\.orbax-checkpoint-tmp.*|.*-unfinished", re.DOTALL
)
_BEING_WRITTEN = re.compile(r"\.tmp.*|.*\.tmp", re.DOTALL)
_PART = re.compile(
    r"(model|pytorch_model|adapter_model)(_\d+)?(-\d{5}-of-\d{5})?\.(safetensors|bin)"
    r"|(optimizer|scheduler|sampler|dl_state_dict)(_\d+)?\.(pt|bin)|scaler\.pt|training_args\.bin|rng_state(_\d+)?\.pth"
)
_LABELLED = tuple(
    re.compile(label + r"s?[=_-]?(\d{1,18})(?!\d)", re.IGNORECASE | re.ASCII) for label in ("step", "iter", "epoch")
)
_NUMBER = re.compile(r"(?<!\d)\d{1,18}(?!\d)", re.ASCII)
_SUFFIXES = re.compile(r"(-v\d+)?(\.(pt|pth|ckpt|bin|safetensors|tar))*$")


def hugging_face_step(name: str) -> int | None:
    """N of "checkpoint-N", the name that Hugging Face's Trainer gives."""
    match = _HUGGING_FACE.fullmatch(name)
    return int(match[1]) if match else None


def step_in_name(name: str) -> int | None:
    """The number behind "step", "iter" or "epoch", in this order of preference, else the last number."""
    stem = _SUFFIXES.sub("", name)
    for pattern in _LABELLED:
        if labelled := pattern.findall(stem):
            return int(labelled[-1])
    numbers = _NUMBER.findall(stem)
    return int(numbers[-1]) if numbers else None


def natural_key(name: str) -> tuple[str | int, ...]:
    """Sorts "part-10" behind "part-9"."""
    return tuple(int(piece) if n % 2 else piece for n, piece in enumerate(re.split(r"([0-9]{1,18})", name)))


def is_temporary(name: str) -> bool:
    """Hidden, or a name that a writer gives to what it has not finished."""
    return _TEMPORARY.fullmatch(name) is not None


def is_being_written(name: str) -> bool:
    """A temporary name inside a checkpoint's directory: its writer is still at work, or died."""
    return _BEING_WRITTEN.fullmatch(name) is not None


def is_part(name: str) -> bool:
    """A file of a checkpoint directory, or of an exported model: never a checkpoint of its own among others."""
    return _PART.fullmatch(name) is not None

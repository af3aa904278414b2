"""What file names say: the step, the order, and which names are never a checkpoint."""

import re
from collections.abc import Collection

POINTER_SUFFIX = ".ckz"  # stands beside where a replaced file stood
POINTER_NAME = "ckzd.json"  # stands inside a replaced directory
TRAINER_STATE = "trainer_state.json"
TRACKER = "latest_checkpointed_iteration.txt"  # Megatron's, and of those who took it over
METADATA = ".metadata"  # of torch.distributed.checkpoint: what lies where
SHARD_SUFFIX = ".distcp"  # of its files
INCOMPLETE_MARKER = "checkpoint-is-incomplete.txt"  # Hugging Face's just-in-time checkpoints remove it last

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".pth.tar")
# in a directory: files that torch.save may have written, or safetensors
TENSOR_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar", ".pkl", ".safetensors")

RANDOM_STATES = re.compile(r"(random_states)_(\d{1,6})\.pkl", re.ASCII)  # Accelerate's, of each rank
# The others are DeepSpeed's: without ZeRO the model's states are all that there is
_WRITTEN_LAST = re.compile(rf"{RANDOM_STATES.pattern}|.*mp_rank_\d+_(model|optim)_states\.pt")
_REFUSED_WITHOUT = re.compile(r"((adapter_|pytorch_)?model.*\.(safetensors|bin)|.*model_states\.pt|.*\.distcp)")
_HUGGING_FACE = re.compile(r"checkpoint-(\d{1,18})", re.ASCII)
_TEMPORARY = re.compile(
    r"\..*|tmp[.-].*|recovery_tmp.*|.*\.(tmp|part|partial|lock)|.*\.orbax-checkpoint-tmp.*|.*-unfinished", re.DOTALL
)
_BEING_WRITTEN = re.compile(r"\.tmp.*|.*\.tmp", re.DOTALL)
_PART = re.compile(
    r"(model|pytorch_model|adapter_model)(_\d+)?(-\d{5}-of-\d{5})?\.(safetensors|bin)"
    r"|(optimizer|scheduler|sampler|dl_state_dict)((_\d+)?\.bin|\.pt)|scaler\.pt|training_args\.bin|rng_state(_\d+)?\.pth"
)
_SHARD = re.compile(
    r"(?<![a-z])(?:rank|shard|part|chunk|layer|worker|proc|process|node|host|gpu|device|tp|pp|dp|consolidated)[=_.-]?(\d{1,18})(?!\d)",
    re.IGNORECASE | re.ASCII,
)
_OF = re.compile(r"(?<!\d)\d+[-_]of[-_]\d+(?!\d)", re.IGNORECASE | re.ASCII)
_STEP_LABEL = re.compile(
    r"(?<![a-z])(?:(?:global[_-]?)?(?:step|iter|iteration|epoch)s?[=_.+-]?"
    r"|(?:checkpoint|ckpt|chkpt|snapshot|save|ep|it)s?[=_.+-])(\d{1,18})(?!\d)",
    re.IGNORECASE | re.ASCII,
)
_DATE = re.compile(r"(?<!\d)(?:19|20)\d\d[-_.]?[01]\d[-_.]?[0-3]\d(?![.]?\d{3})", re.ASCII)
_ONLY_NUMBERS = re.compile(r"\d[\dT_.:+-]*", re.ASCII)
_NUMBERS = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_INDEPENDENT = re.compile(  # words before the number of one of several models that are trained beside each other
    r"(?<![a-z])(?:agent|arm|ensemble|fold|member|player|population|seed|split|task|trial)s?[=_.-]?$", re.IGNORECASE
)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+(?:\.\d+)?", re.ASCII)
_AVERAGES = frozenset({"average", "averaged", "avg", "ema", "shadow", "swa", "target", "teacher"})
_KINDS_OF_FILES = frozenset(
    (
        *("adam", "adamw", "lion", "lr", "muon", "opt", "optim", "optimiser", "optimizer", "optimizers", "sgd"),
        *("model", "net", "network", "param", "parameters", "params", "weight", "weights", "dict", "state", "states"),
        *(
            "checkpoint",
            "chkpt",
            "ckpt",
            "random",
            "rng",
            "scaler",
            "sched",
            "scheduler",
            "train",
            "trainer",
            "training",
        ),
    )
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


def stem_of(name: str) -> str:
    """Without the suffixes of a checkpoint, and the "-v1" that Lightning adds."""
    return _SUFFIXES.sub("", name)


def step_in_name(name: str) -> int | None:
    """The number behind "step", "iter" or "epoch", in this order of preference, else the last number."""
    stem = stem_of(name)
    for pattern in _LABELLED:
        if labelled := pattern.findall(stem):
            return int(labelled[-1])
    numbers = _NUMBER.findall(stem)
    return int(numbers[-1]) if numbers else None


def updates_in_name(name: str) -> int | None:
    """The step in a name, unless that is an epoch's number: no count of updates."""
    step, epoch, _ = _places_of_step(stem_of(name))
    return None if epoch and not step else step_in_name(name)


def step_and_others(name: str) -> tuple[int | None, tuple[tuple[int, str], ...]]:
    """The step in a name, and those other whole numbers that may say of which model it is.

    Each with its place among all numbers of the name. None of them are an epoch, what stands behind an epoch where no
    step is named, and times.
    """
    stem = stem_of(name)
    step, epoch, last = _places_of_step(stem)
    numbers = [(place, match) for place, match in enumerate(_NUMBERS.finditer(stem)) if "." not in match[0]]
    if _DATE.search(stem):
        return step_in_name(name), ()
    end = min(epoch) if epoch and not step else len(stem)
    when = step | epoch or last
    return step_in_name(name), tuple((n, m[0]) for n, m in numbers if m.start() not in when and m.start() < end)


def _places_of_step(stem: str) -> tuple[set[int], set[int], set[int]]:
    """Where numbers behind a word for a step begin, those behind a word for an epoch, and the last number."""
    *steps, epoch = ({match.start(1) for match in pattern.finditer(stem)} for pattern in _LABELLED)
    return set().union(*steps), epoch, {match.start() for match in [*_NUMBER.finditer(stem)][-1:]}


def labelled_step(name: str) -> int | None:
    """The number behind a word for a step, of a directory that may hold one: no "run1", no "version_0"."""
    found = _STEP_LABEL.findall(name)
    return int(found[-1]) if found else None


def is_only_numbers(name: str) -> bool:
    """A step, or a time: "000100", "2024-01-31_10-00"."""
    return _ONLY_NUMBERS.fullmatch(name) is not None


def shard_number(name: str) -> int | None:
    """Which of the parts that several processes write this is, by its name: 3 of "model_step10_rank3.pt"."""
    if _OF.search(name):
        return 0
    found = _SHARD.findall(name)
    return int(found[-1]) if found else None


def family(name: str) -> tuple[str, ...]:
    """What a name says besides the kind of file: "G 5" of "netG_5.pt", "optG_5.pt" and "G_ema_5.pth"."""
    words = (word.lower() for word in _WORDS.findall(stem_of(name)))
    return tuple(sorted(word for word in words if word not in _KINDS_OF_FILES | _AVERAGES))


def averaged(name: str) -> bool:
    """Whether a file is called an average of a model: "model_ema_5.pt"."""
    return any(word.lower() in _AVERAGES for word in _WORDS.findall(stem_of(name)))


def number_of_model(name: str) -> tuple[str, ...]:
    """Which of several independent models a file is of, by its name: 0 of "fold0_step_10.pt", none of "fold_10.pt"."""
    stem = stem_of(name)
    others = {place for place, _ in step_and_others(name)[1]}
    numbers = enumerate(_NUMBERS.finditer(stem))
    return tuple(m[0] for place, m in numbers if place in others and _INDEPENDENT.search(stem[: m.start()]))


def without_numbers(name: str) -> tuple[str, tuple[str, ...]]:
    """What a name says besides numbers, and its whole numbers: "-v1" that Lightning adds and 2.31 are none."""
    stem = stem_of(name)
    return _NUMBERS.sub("#", stem), tuple(number for number in _NUMBERS.findall(stem) if "." not in number)


def series_in_name(name: str, kept: Collection[int] = ()) -> str:
    """What the names of one series have in common: all but numbers, and which of several parts or models a file is.

    "G_100.pth" and "G_200.pth" are alike, "D_100.pth" and "G_100.pt" are others; so is every rank, every fold, and
    whatever differs in the numbers at the places `kept`.
    """
    stem = stem_of(name)
    numbers = list(_NUMBERS.finditer(stem))
    told = [match[0] for place, match in enumerate(numbers) if place in kept and "." not in match[0]]
    text, rank = _NUMBERS.sub("#", stem), shard_number(name)
    _, dot, suffix = name[len(stem) :].partition(".")
    parts = [*([] if rank is None else [str(rank)]), *number_of_model(name), *told]
    return " ".join([f"{text}{dot}{suffix}", *parts])


def natural_key(name: str) -> tuple[str | int, ...]:
    """Sorts "part-10" behind "part-9"."""
    return tuple(int(piece) if n % 2 else piece for n, piece in enumerate(re.split(r"([0-9]{1,18})", name)))


def is_temporary(name: str) -> bool:
    """Hidden, or a name that a writer gives to what it has not finished."""
    return _TEMPORARY.fullmatch(name) is not None


def is_being_written(name: str) -> bool:
    """A temporary name inside a checkpoint's directory: its writer is still at work, or died."""
    return _BEING_WRITTEN.fullmatch(name) is not None


def is_written_last(name: str) -> bool:
    """What frameworks write into the directory of a checkpoint when all else is there."""
    return name in {TRAINER_STATE, METADATA} or _WRITTEN_LAST.fullmatch(name) is not None


def order_of_leaving(name: str) -> tuple[int, str]:
    """Sort key of the files of a directory that they leave one by one, and come back to in the opposite order.

    First what every framework refuses to load a checkpoint without: the model. What is missing else they may not miss:
    Hugging Face goes on with a fresh optimizer where its file or the scheduler's is gone, and so do older versions of
    DeepSpeed where a rank's is; nobody fails for want of random states.
    """
    is_optimizer = "optim" in name.lower()
    is_model = not is_optimizer and _REFUSED_WITHOUT.fullmatch(name.rpartition("/")[2]) is not None
    return 0 if is_model else 2 if is_optimizer else 1, name


def is_part(name: str, beside: Collection[str] | None = None) -> bool:
    """A file of a checkpoint directory, or of an exported model: never a checkpoint of its own among others.

    Accelerate's first has no number: where none such is `beside` it, model_100.bin is of step 100.
    """
    match = _PART.fullmatch(name)
    if match is None:
        return False
    number = match[2] or match[7]
    return beside is None or number is None or name.replace(number, "", 1) in beside

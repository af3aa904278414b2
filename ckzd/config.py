"""TOML file, then `CKZD_...` environment variables, then flags -> one frozen `Settings`.

Of what users set, only this module reads the environment. Nested names take two underscores and watches their number:
`CKZD_DAEMON__PORT=0`, `CKZD_WATCH__0__REPLACE=false`. Durations are seconds, sizes are bytes.
"""

import difflib
import os
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from ckzd.base_models import require_plain_name
from ckzd.defaults import MAX_DEPTH, Effort
from ckzd.errors import ConfigError, encodable
from ckzd.operations.command import DEFAULT_SECONDS, command_words
from ckzd.operations.places import Asked
from ckzd.priority import MOST_NICE
from ckzd.retention import Quota, Rules
from ckzd.state_dir import default_state_dir
from ckzd.store import Store

DECIDE_REPLACE = (
    "decide it once: `replace = true` puts a small pointer where an original stood, after its archive was read back and"
    " verified; `replace = false` keeps every original"
)

MIN_PACE = 1e6  # below it an archive of 10 GB would take a day

Json = dict[str, Any]


def _absolute(path: Any) -> Any:
    """Absolute without following symlinks: a run is known by the name that its owner gave it."""
    if path == "":
        raise ValueError("expected a path, got an empty string")
    return Path(os.path.abspath(Path(path).expanduser())) if isinstance(path, str | Path) else path  # noqa: PTH100


def _split_list(value: Any) -> Any:
    """`CKZD_DAEMON__DEVICES=cuda:0,cpu` is the list of both."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _split_command(value: Any) -> Any:
    """A text is split as a shell would; a list is words already."""
    return command_words(value) if isinstance(value, str) else value


def _plain_model(path: Path) -> Path:
    """A name that an archive can hold."""
    try:
        require_plain_name(path)
    except ConfigError as error:
        raise ValueError(error.problem) from error
    return path


Command = Annotated[tuple[str, ...], BeforeValidator(_split_command), AfterValidator(command_words)]
AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]
ModelPath = Annotated[AbsolutePath, AfterValidator(_plain_model)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KeepSettings(_Frozen):
    """`[watch.keep]`: what is kept of a run's archives; without the table everything is."""

    newest: int | None = Field(default=None, ge=1)  # steps of each series that stay
    every: int | None = Field(default=None, ge=1)  # training steps, of which the first archive stays for ever
    days: float | None = Field(default=None, ge=0, allow_inf_nan=False)  # the others stay until they are older
    moments: int | None = Field(default=None, ge=1)  # newest steps that keep moments; None: all do
    max_bytes: int | None = Field(default=None, ge=0)  # quota of the store
    max_share: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)  # the same, of its disk

    @model_validator(mode="after")
    def _says_what_goes(self) -> "KeepSettings":
        if (self.newest, self.days, self.moments, self.max_bytes, self.max_share) == (None,) * 5:
            raise ValueError("expected newest, days, moments, max_bytes or max_share, or nothing would ever go")
        return self

    @property
    def rules(self) -> Rules:
        """What stays of a run."""
        return Rules(self.newest, self.every, self.days, self.moments)

    @property
    def quota(self) -> Quota:
        """What its store may take."""
        return Quota(self.max_bytes, self.max_share)


class WatchSettings(_Frozen):
    """One `[[watch]]`: a run, or a directory of runs, and what becomes of its checkpoints."""

    path: AbsolutePath
    replace: bool  # no default: nobody may lose an original by silence
    preset: Literal["resume", "archive", "paper", "lossless"] = "resume"
    effort: Effort = Effort.BEST  # what falls behind is archived with less, until it has caught up
    keep_raw: int = Field(default=2, ge=0)  # newest checkpoints of a run that stay untouched
    settle_seconds: Seconds = 30.0  # unchanged for so long, over two looks; writers pause for seconds between files
    store: AbsolutePath | None = None  # None: `.ckzd` beside the run
    stride: int = Field(default=1, ge=1)  # how many checkpoints back the reference is
    max_depth: int = Field(default=MAX_DEPTH, ge=1)  # deltas of a chain at most; a restore decodes them all
    base_model: ModelPath | None = None  # what a run's first archive is a delta against; None: it is a base
    trash_seconds: Seconds = 3600.0  # a replaced original can be fetched back from the store's trash for so long
    min_free: Annotated[int, Field(ge=0)] | None = None  # bytes; below it the trash is emptied. None: two checkpoints
    on_rotate: Literal["keep", "drop"] = "keep"  # archives of checkpoints that the framework deleted
    keep: KeepSettings | None = None  # which archives are deleted, and with them pointers. None: none ever
    scan_seconds: float = Field(default=60.0, gt=0, allow_inf_nan=False)  # full scan at least so often, events or not
    max_lag: int = Field(default=50, ge=1)  # checkpoints of one run that may wait; the older ones are left raw
    accept_command: Command | None = None  # None: an archive counts as soon as it is verified
    accept_seconds: float = Field(default=DEFAULT_SECONDS, gt=0, allow_inf_nan=False)  # its time limit


class DaemonSettings(_Frozen):
    """The `[daemon]` table."""

    state_dir: AbsolutePath = Field(default_factory=default_state_dir)
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=19840, ge=0, le=65535)  # 0: any free port, written to `state_dir`
    devices: Annotated[tuple[Device, ...], BeforeValidator(_split_list), Field(min_length=1)] = ("auto",)
    workers: int | None = Field(default=None, ge=1)  # processes on the CPU; None: sized by cores and memory
    threads: int | None = Field(default=None, ge=1)  # threads of one worker; None: half of the cores, at most 8
    nice: int = Field(default=MOST_NICE, ge=0, le=MOST_NICE)  # the most nice take only what nobody else wants
    disk_bytes_per_second: float | None = Field(default=None, ge=MIN_PACE, allow_inf_nan=False)  # of each worker
    drain_seconds: Seconds = 300.0  # after SIGTERM the running jobs may take so long to finish
    check_percent_a_day: float = Field(default=5.0, ge=0, le=100, allow_inf_nan=False)  # of a store's archives; 0: none
    job_seconds: Seconds = 1800.0  # time limit of a job: this, and its bytes at `job_bytes_per_second`
    job_bytes_per_second: float = Field(default=200_000.0, gt=0, allow_inf_nan=False)


class Settings(_Frozen):
    """All that the daemon is told."""

    watch: tuple[WatchSettings, ...] = ()
    daemon: DaemonSettings = Field(default_factory=DaemonSettings)

    @model_validator(mode="after")
    def _watches_are_directories_apart(self) -> "Settings":
        for number, watch in enumerate(self.watch):
            if set("*?[") & set(str(watch.path)) and not os.path.lexists(watch.path):
                problem = f"expected a directory, got the pattern {str(watch.path)!r}"
                raise ConfigError(
                    f"watch[{number}].path", problem, hint="name the directory above: ckzd finds its runs"
                )
            for other_number, other in enumerate(self.watch[:number]):
                if watch.path.is_relative_to(other.path) or other.path.is_relative_to(watch.path):
                    problem = f"lies in the tree of watch[{other_number}].path {other.path}, got {watch.path}"
                    raise ConfigError(f"watch[{number}].path", problem, hint="let every run be watched once")
        return self

    def asked(self, paths: Sequence[Path] = (), store: Path | None = None) -> list[Asked]:
        """What a user means by some paths, or by none: then all that is watched. `store`: what he named with them.

        Where he named none, what is watched is in the store that is configured for it. Raises ConfigError for nothing.
        """
        if not paths and store is not None:
            paths = [store]
        if not paths and not self.watch:
            problem = "expected a path, or a configuration with a [[watch]], got neither: nothing is watched"
            raise ConfigError("PATH", problem, hint="name a run or a store, or --config FILE")
        watched = [Asked(watch.path, store or watch.store, is_watched=True) for watch in self.watch]
        if not paths:
            return watched
        found = []
        for path in map(_absolute, paths):
            below = [each for each in watched if each.store is not None and path in each.path.parents]
            above = [w.store for w in self.watch if path.is_relative_to(w.path) and w.store and Store.is_at(w.store)]
            found += [*below, Asked(path, store or next(iter(above), None), is_watched=bool(below))]
        return found

    @property
    def watch_names(self) -> tuple[str, ...]:
        """Short names for metric labels: the last part of each path, with its number where several have the same."""
        last = [encodable(watch.path.name or "root") for watch in self.watch]
        return tuple(f"{name}[{n}]" if last.count(name) > 1 else name for n, name in enumerate(last))

    def watch_name_of(self, checkpoint: Path) -> str:
        """The name of the watch that a checkpoint lies in; empty if there is none."""
        named = zip(self.watch_names, self.watch, strict=True)
        return next((name for name, watch in named if checkpoint.is_relative_to(watch.path)), "")


class _Environment(BaseSettings):
    """The `CKZD_` variables as they stand; `Settings` judges them together with the file and the flags."""

    model_config = SettingsConfigDict(env_prefix="CKZD_", env_nested_delimiter="__", extra="ignore")

    watch: dict[str, Any] | list[Any] = {}
    daemon: dict[str, Any] = {}


def load(config: Path | None = None, **overrides: Any) -> Settings:
    """Read the settings: file, environment over it, `overrides` (nested like the file) over both.

    Without `config` the first of `default_config_files()` that exists is read, or none. Every mistake is a ConfigError
    that names the field, what was expected and what was got.
    """
    file = config if config is not None else next((path for path in default_config_files() if path.exists()), None)
    try:
        environment = _Environment().model_dump(exclude_unset=True)
    except (SettingsError, ValidationError) as error:
        problem = f"cannot be read from the environment: {_first_line(error)}"
        raise ConfigError("CKZD_WATCH or CKZD_DAEMON", problem, hint="use JSON, or one variable a field") from error
    merged: Json = {}
    for layer in (_read_toml(file) if file else {}, environment, overrides):
        merged = _merge(merged, _number_watches(layer))
    if "watch" in merged:
        merged["watch"] = _watches_in_order(merged["watch"])
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise _config_error(error, file) from error


def default_config_files() -> tuple[Path, ...]:
    """Where `load(None)` looks, in this order."""
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return (Path(home).expanduser() / "ckzd" / "ckzd.toml", Path("/etc/ckzd/ckzd.toml"))


@dataclass(frozen=True, slots=True)
class Systemd:
    """What the service manager told this process."""

    notify_socket: str | None = None
    watchdog_seconds: float | None = None


def systemd() -> Systemd:
    """Read $NOTIFY_SOCKET and, when it is meant for this process, $WATCHDOG_USEC."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    seconds = int(microseconds) / 1e6 if for_us and microseconds.isdecimal() else None
    return Systemd(os.environ.get("NOTIFY_SOCKET") or None, seconds)


def _read_toml(path: Path) -> Json:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(path, f"cannot be read: {error.strerror}", hint="check `--config`") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(path, f"expected TOML, got a syntax error: {error}") from error


def _number_watches(layer: Mapping[str, Any]) -> Json:
    """A list of watches becomes {"0": ..., "1": ...}, so that one field of one watch can be laid over another layer."""
    watches = layer.get("watch")
    if isinstance(watches, list | tuple):
        return {**layer, "watch": {str(number): watch for number, watch in enumerate(watches)}}
    return dict(layer)


def _watches_in_order(watches: Any) -> Any:
    if not isinstance(watches, dict):
        return watches
    strange = [key for key in watches if not key.isdecimal()]
    if strange:
        problem = f"expected [[watch]] tables (in a file) or their number (CKZD_WATCH__0__...), got {strange[0]!r}"
        raise ConfigError("watch", problem)
    return [watches[key] for key in sorted(watches, key=int)]


def _merge(below: Json, above: Json) -> Json:
    """Tables are merged field by field, anything else is replaced; None in `above` means "not given"."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict):
            inner = merged.get(key)
            merged[key] = _merge(inner if isinstance(inner, dict) else {}, value)
        elif value is not None:
            merged[key] = value
    return merged


def _config_error(error: ValidationError, file: Path | None) -> ConfigError:
    """The first wrong field in full, the others by name."""
    problems = error.errors()
    field = _field_name(problems[0]["loc"])
    others = [_field_name(problem["loc"]) for problem in problems[1:]]
    place = f" in {file}" if file else ""
    more = f" (also wrong: {', '.join(others)})" if others else ""
    expected, hint = _explain(problems[0])
    return ConfigError(field, f"{expected}{place}{more}", hint=hint)


def _explain(problem: Any) -> tuple[str, str]:
    field, kind, got = problem["loc"][-1], problem["type"], problem["input"]
    if kind == "missing":
        kinds = {"replace": "true or false", "path": "a directory"}
        return f"expected {kinds.get(str(field), 'a value')}, got nothing", DECIDE_REPLACE if field == "replace" else ""
    if kind == "extra_forbidden":
        known = _known_fields(problem["loc"])
        close = difflib.get_close_matches(str(field), known, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"the settings here are {', '.join(known)}"
        return "unknown setting: expected a name that ckzd knows", hint
    if kind == "string_pattern_mismatch":
        return f"expected auto, cpu, cuda or cuda:<number>, got {got!r}", ""
    message = (
        str(problem["msg"])
        .removeprefix("Value error, ")
        .replace("Input should be", "expected")
        .replace("tuple", "list")
    )
    return message if message.startswith("expected") and "got" in message else f"{message}, got {got!r}", ""


def _known_fields(location: tuple[int | str, ...]) -> list[str]:
    """The settings that stand in the table at `location`."""
    model: type[BaseModel] = Settings
    for part in location[:-1]:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            inner = [kind for kind in (annotation, *get_args(annotation)) if _is_model(kind)]
            model = inner[0]
    return list(model.model_fields)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and not isinstance(kind, types.GenericAlias) and issubclass(kind, BaseModel)


def _field_name(location: tuple[int | str, ...]) -> str:
    """("watch", 0, "replace") -> "watch[0].replace"."""
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return name.removeprefix(".") or "settings"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]

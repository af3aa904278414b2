"""What must be true before the service starts. Every error names the setting."""

from pathlib import Path

from ckzd.config import Settings
from ckzd.daemon import filesystems
from ckzd.errors import ConfigError
from ckzd.operations.child import run_module
from ckzd.operations.command import require_program


def require_servable(settings: Settings) -> None:
    """ConfigError for settings that cannot work on this machine."""
    if not settings.watch:
        raise ConfigError("watch", "expected at least one [[watch]], got none", hint="name a directory of checkpoints")
    for watch in settings.watch:
        if watch.accept_command is not None:
            require_program(watch.accept_command)
    _require_state_dir(settings.daemon.state_dir)
    _require_devices([device for device in settings.daemon.devices if device.startswith("cuda")])


def _require_state_dir(state_dir: Path) -> None:
    if filesystems.is_network(kind := filesystems.kind(state_dir)):
        problem = f"expected a local disk, got {kind}: {state_dir}"
        raise ConfigError(
            "daemon.state_dir", problem, hint="SQLite's journal does not survive on a network file system"
        )
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        (state_dir / "lock").touch()
    except OSError as error:
        problem = f"expected a directory that ckzd may write to, got {state_dir}: {(error.strerror or '').lower()}"
        raise ConfigError("daemon.state_dir", problem, hint="name one on a local disk") from error


def _require_devices(names: list[str]) -> None:
    """A GPU that is not there: its workers would fail one after the other."""
    if names:
        try:
            run_module("ckzd.operations.device", names, subject=Path("daemon.devices"))
        except ConfigError as error:
            raise ConfigError("daemon.devices", error.problem, hint=error.hint) from error

"""Notes for other stores lie where each process of this machine looks."""

from pathlib import Path

from ckzd.state_dir import default_state_dir, state_dirs


def test_ours_comes_first_then_the_users_and_the_systems(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/home/me/state")
    assert state_dirs() == (Path("/home/me/state/ckzd"), Path("/var/lib/ckzd"))
    monkeypatch.setenv("STATE_DIRECTORY", "/srv/ckzd:/srv/other")
    assert default_state_dir() == Path("/srv/ckzd")
    assert state_dirs() == (Path("/srv/ckzd"), Path("/home/me/state/ckzd"), Path("/var/lib/ckzd"))


def test_a_user_without_a_home_has_none(monkeypatch):
    def no_home(_: Path) -> Path:
        raise RuntimeError("could not determine home directory")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    assert state_dirs() == (Path("/var/lib/ckzd"),)

"""Notes for other stores lie where each process of this machine looks."""

from pathlib import Path

import pytest

from ckzd.state_dir import default_state_dir, state_dirs


@pytest.fixture(autouse=True)
def of_the_system(monkeypatch, tmp_path) -> Path:
    monkeypatch.setattr("ckzd.state_dir.OF_THE_SYSTEM", tmp_path)
    return tmp_path


def test_ours_comes_first_then_the_users_and_the_systems(monkeypatch, of_the_system):
    monkeypatch.setenv("XDG_STATE_HOME", "/home/me/state")
    assert state_dirs() == (Path("/home/me/state/ckzd"), of_the_system)
    monkeypatch.setenv("STATE_DIRECTORY", "/srv/ckzd:/srv/other")
    assert default_state_dir() == Path("/srv/ckzd")
    assert state_dirs() == (Path("/srv/ckzd"), Path("/home/me/state/ckzd"), of_the_system)


def test_a_user_without_a_home_has_none(monkeypatch, of_the_system):
    def no_home(_: Path) -> Path:
        raise RuntimeError("could not determine home directory")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    assert state_dirs() == (of_the_system,)


def test_what_the_system_does_not_have_is_not_made_there(monkeypatch, tmp_path):
    monkeypatch.setattr("ckzd.state_dir.OF_THE_SYSTEM", tmp_path / "none")
    assert tmp_path / "none" not in state_dirs()

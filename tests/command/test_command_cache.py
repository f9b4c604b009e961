"""The place of the cache of `staddle backup`: by flag, variable, file or system, or none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import CommandLine


def made_in(place: Path) -> int:
    """The number of caches in the directory."""
    return len({each.name for each in place.iterdir()} - {"CACHEDIR.TAG"}) if place.exists() else 0


@pytest.fixture
def back_up(staddle: CommandLine, source: Path):
    """Makes a backup, with these arguments and variables; `XDG_CACHE_HOME` is not set unless they do."""

    def run(*arguments: str, **variables: str) -> None:
        staddle("backup", source, "--dataset", "data", *arguments, **{"XDG_CACHE_HOME": ""} | variables)

    return run


def test_the_default_cache_is_below_the_cache_directory_of_the_user(
    back_up, staddle: CommandLine, tmp_path: Path
) -> None:
    back_up()
    assert made_in(staddle.home / ".cache" / "staddle") == 1
    back_up(XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert made_in(tmp_path / "xdg" / "staddle") == 1
    back_up(XDG_CACHE_HOME="relative")  # which counts as unset
    assert made_in(staddle.home / ".cache" / "staddle") == 2


def test_the_flag_for_the_cache_comes_before_the_variable_and_the_file(
    back_up, staddle: CommandLine, tmp_path: Path
) -> None:
    config = tmp_path / "config" / "client.toml"
    config.parent.mkdir()
    config.write_text('cache_dir = "remembered"\n')
    settings = {"STADDLE_CONFIG": str(config)}
    back_up(**settings)
    assert made_in(config.parent / "remembered") == 1
    back_up(**settings, STADDLE_CACHE_DIR=str(tmp_path / "variable"))
    back_up("--cache-dir", str(tmp_path / "flag"), **settings, STADDLE_CACHE_DIR=str(tmp_path / "variable"))
    assert made_in(tmp_path / "variable") == made_in(tmp_path / "flag") == 1
    assert not (staddle.home / ".cache").exists()


def test_the_cache_can_be_disabled(back_up, staddle: CommandLine, tmp_path: Path) -> None:
    config = tmp_path / "client.toml"
    config.write_text('cache_dir = "none"\n')
    back_up("--no-cache")
    back_up("--cache-dir", "none")
    back_up(STADDLE_CACHE_DIR="none")
    back_up(STADDLE_CONFIG=str(config))
    back_up("--no-cache", "--cache-dir", str(tmp_path / "flag"))
    assert not (staddle.home / ".cache").exists()
    assert not (tmp_path / "flag").exists()
    assert not (staddle.home / "none").exists()
    assert not (tmp_path / "none").exists()


def test_an_unwritable_home_disables_the_cache_and_not_the_backup(
    back_up, staddle: CommandLine, source: Path
) -> None:
    (staddle.home / ".cache").touch()
    back_up()
    done = staddle("backup", source, "--dataset", "data", XDG_CACHE_HOME="")
    assert done.err == ""


def test_without_a_home_no_cache_is_kept(back_up) -> None:
    back_up(HOME="relative")
    assert not os.path.exists("relative")


def test_a_cache_among_other_things_marks_only_its_own_directory(
    staddle: CommandLine, source: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home-of-others"
    home.mkdir()
    (home / "letter").write_text("dear")
    for _ in range(2):
        staddle("backup", source, "--dataset", "data", "--cache-dir", home)
    assert sorted(each.name for each in home.iterdir()) == ["letter", "staddle"]
    assert made_in(home / "staddle") == 2  # of the full backup, and of the newest
    staddle("backup", home, "--dataset", "home", "--no-cache")
    assert staddle("cat", "home", "letter").out == b"dear"


@pytest.mark.parametrize("tag", [b"", b"Signature: 8a477f597d28d172789f06886806bc55\n# of another program\n"])
def test_a_directory_of_others_is_neither_marked_nor_tidied(
    tag: bytes, staddle: CommandLine, source: Path, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    for each in (place, place / "staddle"):
        each.mkdir()
        (each / ".new-of-others").touch()
        os.utime(each / ".new-of-others", (0, 0))
        if tag:
            (each / "CACHEDIR.TAG").write_bytes(tag)
    before = sorted((str(path), path.stat().st_size) for path in place.rglob("*"))
    for _ in range(2):
        staddle("backup", source, "--dataset", "data", "--cache-dir", place)
    assert sorted((str(path), path.stat().st_size) for path in place.rglob("*")) == before

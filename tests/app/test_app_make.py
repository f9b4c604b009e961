"""The Makefile finds a working Python, and clearly reports what the machine lacks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]


def make(*arguments: str, path: Path | str | None = None) -> subprocess.CompletedProcess[str]:
    """`make` as typed in the project, on a PATH that begins with the given one."""
    inherited = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PYTHON", "VENV", "CONSTRAINTS"}
    env = {name: value for name, value in os.environ.items() if name not in inherited}
    if path is not None:
        env["PATH"] = f"{path}:{env['PATH']}"
    return subprocess.run(
        ["make", *arguments], cwd=TOP, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def chosen(done: subprocess.CompletedProcess[str]) -> str:
    """The interpreter that a dry run would create the environment with."""
    match = re.search(r"^(\S+) -m venv ", done.stdout, re.MULTILINE)
    assert match is not None, done.stdout + done.stderr
    return match[1]


def test_every_listed_target_exists() -> None:
    shown = make("help").stdout
    targets = set(re.findall(r"^make ([a-z-]+)  ", shown, re.MULTILINE))
    assert targets >= {"demo", "test", "serve", "check", "protos", "bench", "big", "interop", "clean"}
    done = make("--dry-run", *sorted(targets))
    assert done.returncode == 0, done.stderr
    assert max(map(len, shown.splitlines())) <= 80


def interpreter(path: Path, *, optimised: bool) -> Path:
    """A Python that says so of its build."""
    path.parent.mkdir(exist_ok=True)
    end = 0 if optimised else 1
    return script(path, f'case "$1" in */interpreter.py) exit {end};; esac; exec {sys.executable} "$@"')


def test_a_shim_without_an_interpreter_is_skipped(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("python3.14", "python3.13"):
        script(broken / name, "echo 'command not found' >&2; exit 127")
    works = interpreter(tmp_path / "works" / "python3.14", optimised=True)
    interpreter(tmp_path / "works" / "python3.13", optimised=True)
    done = make("--dry-run", "venv", f"VENV={tmp_path}/v", path=f"{broken}:{works.parent}")
    assert chosen(done) == str(works)


def test_of_equally_new_interpreters_an_optimised_one_is_taken(tmp_path: Path) -> None:
    interpreter(tmp_path / "first" / "python3.14", optimised=False)
    second = interpreter(tmp_path / "second" / "python3.14", optimised=True)
    interpreter(tmp_path / "first" / "python3.13", optimised=True)
    bare = tmp_path / "bare"
    bare.mkdir()
    script(
        bare / "python3.14",
        f'case "$*" in *ensurepip*) exit 1;; */interpreter.py) exit 0;; esac; exec {sys.executable} "$@"',
    )
    done = make("--dry-run", "venv", f"VENV={tmp_path}/v", path=f"{bare}:{tmp_path}/first:{second.parent}")
    assert chosen(done) == str(second)


def test_a_newer_interpreter_is_taken_whatever_its_build(tmp_path: Path) -> None:
    newer = interpreter(tmp_path / "newer" / "python9.9", optimised=False)
    interpreter(tmp_path / "newer" / "python9.8", optimised=True)
    words = ("CANDIDATES=python9.9 python9.8", f"VENV={tmp_path}/v")
    assert chosen(make("--dry-run", "venv", *words, path=newer.parent)) == str(newer)


@pytest.mark.slow
def test_an_environment_of_another_interpreter_is_made_anew(tmp_path: Path) -> None:
    place = tmp_path / "v"
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").symlink_to("/bin/false")
    (place / "left").touch()
    shown = make("--dry-run", "venv", f"PYTHON={sys.executable}", f"VENV={place}").stdout
    (line,) = re.findall(r"^(\S+ -m venv .*)$", shown, re.MULTILINE)
    for _ in range(2):
        subprocess.run(["/bin/sh", "-c", line], check=True, timeout=120)
        assert os.path.realpath(place / "bin" / "python") == os.path.realpath(sys.executable)
        assert not (place / "left").exists()
    (place / "kept").touch()
    subprocess.run(["/bin/sh", "-c", line], check=True, timeout=120)
    assert (place / "kept").exists()


def test_an_outdated_or_missing_python_is_reported_with_what_to_do(tmp_path: Path) -> None:
    old = script(tmp_path / "old", "exit 1")
    for python in (str(old), "python9.9"):
        done = make("venv", f"PYTHON={python}", f"VENV={tmp_path}/v")
        assert done.returncode == 2
        assert f"{python} is not: it is older or does not run" in done.stderr
        assert "apt-get install" in done.stderr
    assert not (tmp_path / "v").exists()


def test_without_ensurepip_the_package_to_install_is_named(tmp_path: Path) -> None:
    bare = script(tmp_path / "bare", f'case "$2" in *ensurepip*) exit 1;; esac; exec {sys.executable} "$@"')
    done = make("venv", f"PYTHON={bare}", f"VENV={tmp_path}/v")
    assert done.returncode == 2
    assert f"apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in done.stderr
    assert not (tmp_path / "v").exists()


def test_another_python_and_other_constraints_get_a_separate_environment(tmp_path: Path) -> None:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    done = make(
        "--dry-run", "--always-make", "venv", f"PYTHON={sys.executable}", "CONSTRAINTS=.ci/oldest.txt"
    )
    assert f" .venv-{version}-oldest\n" in done.stdout
    assert "--constraint .ci/oldest.txt" in done.stdout


@pytest.mark.parametrize("shell", ["bash"])
def test_the_ci_script_is_valid_shell(shell: str) -> None:
    subprocess.run([shell, "-n", TOP / ".ci" / "run"], check=True)
    assert os.access(TOP / ".ci" / "run", os.X_OK)

"""What callers pass to a backup or a restore, checked and joined; and the errors that both end with."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from staddle._base.extra_packages import CLI_PACKAGES
from staddle._base.figures import counted
from staddle._errors import BadRequestError, DamageError, UnsupportedError
from staddle._protocol.arguments import checked_path, choice
from staddle._protocol.convert import text
from staddle._types.backups import BackupKind
from staddle._types.entries import PathLike
from staddle._types.options import BackupOptions, RestoreOptions, SourceArguments
from staddle._types.reports import RestoreReport

LocalPath = str | bytes | os.PathLike[str]
"""A path of this machine."""


def backup_options(dataset: str, source: SourceArguments) -> BackupOptions:
    """What a backup and its plan are asked for alike. Raises BadRequestError, or TypeError for another argument."""
    given: dict[str, Any] = dict(source)
    for name in ("exclude", "exclude_files", "exclude_if_present"):
        given[name] = tuple(given.get(name, ()))
    given["kind"] = choice("kind", given.get("kind", "auto"), BackupKind)
    given["paths"] = _names(given.get("paths"))
    if unknown := given.keys() - SourceArguments.__annotations__:
        raise TypeError(f"a backup has no argument {min(unknown)!r}")
    return BackupOptions(dataset=text("dataset", dataset), **given)


def _names(paths: Iterable[PathLike] | None) -> tuple[PathLike, ...] | None:
    """The names of a list. Raises BadRequestError for a single string, whose letters would become names."""
    if isinstance(paths, str | bytes):
        raise BadRequestError(f"paths is a list of paths, not {paths!r}.", facts={"field": "paths"})
    return None if paths is None else tuple(paths)


def local_paths(path: LocalPath | Sequence[LocalPath]) -> list[bytes]:
    """One path or several, as the bytes that the file system uses."""
    paths = [path] if isinstance(path, str | bytes | os.PathLike) else list(path)
    return [os.fsencode(each) for each in paths]


def missing_extra(error: ModuleNotFoundError) -> ModuleNotFoundError | UnsupportedError:
    """The error for a missing package of the extra `cli`; any other missing module is returned unchanged."""
    if error.name not in CLI_PACKAGES:
        return error
    return UnsupportedError(
        f"This needs the package {error.name}: `pip install 'staddle[cli]'` installs it. "
        "With thin=True, and without patterns, a backup works without it; so does a restore without patterns.",
        facts={"package": error.name or ""},
    )


def _damage_error(report: RestoreReport) -> DamageError:
    damaged = report.damaged
    first = damaged[0]
    return DamageError(
        f"{counted(len(damaged), 'path is', 'paths are')} damaged in the store and not restored, the first is {first.path_bytes!r}: {first.message}. "
        "Everything else was; the report names all.",
        facts={"path": ascii(first.path), "count": str(len(damaged)), "backup": report.backup.id},
        report=report,
    )


def restore_options(
    paths: Iterable[PathLike],
    *,
    include: Sequence[str],
    include_files: Sequence[str],
    exclude: Sequence[str],
    exclude_files: Sequence[str],
    **others: Any,
) -> RestoreOptions:
    """What a restore and an archive are asked for alike. Raises BadRequestError, also where a file of patterns cannot be read."""
    from staddle._fs.excludes import all_patterns

    return RestoreOptions(
        paths=tuple(checked_path(path) for path in paths),
        include=all_patterns("include_files", include_files, include),
        exclude=all_patterns("exclude_files", exclude_files, exclude),
        **others,
    )


def reported(run: Callable[[], RestoreReport]) -> RestoreReport:
    """The report of a restore that `run` makes.

    Raises DamageError with the report if something of the backup is damaged, UnsupportedError where a package is not installed.
    """
    try:
        report = run()
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error
    if report.damaged:
        raise _damage_error(report)
    return report

"""The client: everything that the service does, as methods."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import IO, Any, Final, Self, TypeVar, Unpack, get_args

from google.protobuf.message import Message

from staddle._browse import BrowseMethods
from staddle._options import (
    LocalPath,
    backup_options,
    local_paths,
    missing_extra,
    reported,
    restore_options,
)
from staddle._protocol.arguments import choice, one_of
from staddle._protocol.convert import text
from staddle._protocol.selectors import selector_of
from staddle._retention import RetentionMethods
from staddle._runs import RunMethods
from staddle._transport.calls import Calls
from staddle._transport.channel import refuse_other_platforms
from staddle._transport.retry import Retry
from staddle._transport.settings import NOWHERE, Settings, load_settings
from staddle._types.backups import BackupKind, Profile, Scope
from staddle._types.entries import PathLike
from staddle._types.options import (
    ArchiveFormat,
    At,
    BinarySink,
    Overwrite,
    SourceArguments,
)
from staddle._types.plan import BackupPlan, PlannedPathCallback
from staddle._types.reports import BackupReport, ProgressCallback, RestoreReport
from staddle._upload.upload import Upload, UploadOptions

M = TypeVar("M", bound=Message)
V = TypeVar("V")

UPLOAD_RETRY_S: Final = 600.0


class Client(BrowseMethods, RetentionMethods, RunMethods):
    """A client of a Staddle server, or of several servers of one service, as one token.

        from staddle import Client

        with Client.from_config() as client:
            report = client.backup("/srv/data", dataset="www")
            print(report.backup.id, report.problems)
            client.restore("www", "/tmp/out", at="2h")

    Connects on first use. Threads may share a client. Every method blocks; from a coroutine, call it with
    `asyncio.to_thread`. `close` may be called from any thread: calls in flight then raise CancelledError.
    After a fork, the child opens its own connection.

    Every failure outside this process is a StaddleError: see `staddle.StaddleError` for the tree.
    """

    def __init__(
        self,
        server: str,
        token: str,
        *,
        ca: str | os.PathLike[str] | None = None,
        cert: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        server_name: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        timeout_s: float | None = None,
        retry_s: float | None = None,
        await_server: bool = False,
    ) -> None:
        """A client of `server` (HOST:PORT or unix:PATH), or of several servers of one service, with commas between their addresses.

        Of several servers, and of those that one name stands for, one is chosen by chance and used until it fails or shuts down; then
        the next is asked at once. An upload stays at one server, and continues at another from its last checkpoint.

        `ca` is the file of the authority that signed the server's certificate, or "system" for a public authority; it is
        required for a server on another machine. `cert` and `key` are the client's own, for mutual TLS. `server_name` is
        the name in the server's certificate if that is not the host. `cache_dir` is the directory in which the client keeps what its
        backups hold, or "none"; the default is $XDG_CACHE_HOME/staddle, usually ~/.cache/staddle.

        `timeout_s` limits each call (the default depends on the call, from a minute to an hour). Temporary failures are retried
        for `retry_s` (10 s by default; backups and restores have their own argument). If the server does not answer the first
        call, that is an error at once; with `await_server`, for a server that may be starting, that call is retried, too.

        Raises ConfigError for invalid settings, UnsupportedError on an unsupported platform.
        """
        refuse_other_platforms()
        settings = Settings(
            server=server,
            token=token,
            ca=os.fspath(ca or ""),
            cert=os.fspath(cert or ""),
            key=os.fspath(key or ""),
            server_name=server_name or "",
            cache_dir=os.fspath(cache_dir or ""),
        )
        self._cache_dir = settings.cache_dir
        retry = Retry() if retry_s is None else Retry(budget_s=retry_s)
        self._calls = Calls(settings, timeout_s=timeout_s, retry=retry, await_server=await_server)

    @classmethod
    def from_config(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        server: str | None = None,
        token: str | None = None,
        ca: str | None = None,
        cert: str | None = None,
        key: str | None = None,
        server_name: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        timeout_s: float | None = None,
        retry_s: float | None = None,
        await_server: bool = False,
    ) -> Self:
        """A client configured field by field, from the first of: these arguments; STADDLE_SERVER, STADDLE_TOKEN, STADDLE_CA,
        STADDLE_CERT, STADDLE_KEY, STADDLE_SERVER_NAME, STADDLE_CACHE_DIR; a TOML file with the keys server, token, ca, cert, key, server_name,
        cache_dir.

        The file is the first of: `path`, $STADDLE_CONFIG, ~/.config/staddle/client.toml, /etc/staddle/client.toml. Raises ConfigError,
        naming every place, if nothing is found.
        """
        settings = load_settings(
            path,
            server=server,
            token=token,
            ca=ca,
            cert=cert,
            key=key,
            server_name=server_name,
            cache_dir=None if cache_dir is None else os.fspath(cache_dir),
        )
        return cls(
            settings.server,
            settings.token,
            ca=settings.ca,
            cert=settings.cert,
            key=settings.key,
            server_name=settings.server_name,
            cache_dir=settings.cache_dir,
            timeout_s=timeout_s,
            retry_s=retry_s,
            await_server=await_server,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<staddle.Client of {self.service}{', closed' if self._calls.closed else ''}>"

    @property
    def address(self) -> str:
        """HOST:PORT or unix:PATH of the server that answered last; before the first answer, of the one that is asked first."""
        return self._calls.address

    @property
    def service(self) -> str:
        """The addresses of all servers that this client may ask, with commas between."""
        return self._calls.service

    def close(self) -> None:
        """Ends the connection, and every call on it with CancelledError. May be called from any thread, and again."""
        self._calls.close()

    # ------------------------------------------------------------------------------------------- directories

    def backup(
        self,
        path: LocalPath | Sequence[LocalPath],
        *,
        dataset: str,
        tags: Mapping[str, str] | None = None,
        thin: bool = False,
        profile: str = Profile.CONTENT_DEFINED,
        cache: bool = True,
        retry_s: float = UPLOAD_RETRY_S,
        progress: ProgressCallback | None = None,
        **source: Unpack[SourceArguments],
    ) -> BackupReport:
        """Backs up a directory or one file. `report.problems` names what could not be read.

        Several paths become one backup, whose root is the directory that all of them lie in; of what else is in it, only the directories on
        the way are recorded. `paths` limits the backup of one directory to these paths in it, with everything below them; one that does not
        exist is a problem, and it is BadRequestError if none does.
        `kind` is auto, full, incremental or differential; `exclude` are patterns as in .gitignore, `exclude_files` files of such, each
        read once. A pattern that begins with the path of the root means what lies there; one that cannot be meant is BadRequestError, and
        one that matched nothing is a warning. `exclude_caches` leaves out what is in directories marked by CACHEDIR.TAG and in data
        directories of a Staddle server, `exclude_if_present` what is in directories that hold a file of such a name, and
        `exclude_larger_than_bytes` larger files. `path` is followed if it is a symbolic link; what is neither a directory nor a file is
        BadRequestError. A source that has become empty, or has lost more than `max_removed_percent` of the entries that the base has, is
        TooMuchRemovedError, and no backup is made; 100 allows everything.
        The dataset has one root: another one is RootDiffersError without `new_root`. `host` is where the data is, by default this
        machine's name. `thin` sends all bytes and lets the server cut them; otherwise they are cut here, and only what is missing
        travels, which needs the packages of `pip install 'staddle[cli]'`. `cache` lets it remember what the
        backup holds, so that the next one need not ask the server (see `cache_dir`). Temporary failures are retried for `retry_s`.

        When it returns, the backup is durable. Calling it again resumes an interrupted backup.
        """
        options = replace(
            backup_options(dataset, source),
            tags=dict(tags or {}),
            thin=thin,
            retry_s=retry_s,
            progress=progress,
            profile=choice("profile", profile, Profile),
            cache_dir=self._cache_place() if cache else None,
        )
        try:
            from staddle._backup.run import backup_directory

            return backup_directory(self._calls, local_paths(path), options)
        except ModuleNotFoundError as error:
            raise missing_extra(error) from error

    def plan_backup(
        self,
        path: LocalPath | Sequence[LocalPath],
        *,
        dataset: str,
        each: PlannedPathCallback | None = None,
        progress: ProgressCallback | None = None,
        **source: Unpack[SourceArguments],
    ) -> BackupPlan:
        """What `backup` with the same arguments would do now: how much is new, changed, removed and unchanged. `each` takes the paths.

        It looks at the tree and at the base's list of entries. It opens no upload, writes nothing at the server or in the client's cache,
        and reads no file, but opens those that would be read, so that `problems` names the ones that cannot be. It raises what
        `backup` would raise before it sends anything, such as TooMuchRemovedError and RootDiffersError.
        """
        # The thin way needs no package that only cutting needs.
        options = replace(backup_options(dataset, source), thin=True, progress=progress)
        try:
            from staddle._backup.plan import plan_backup

            return plan_backup(self._calls, local_paths(path), options, each=each)
        except ModuleNotFoundError as error:
            raise missing_extra(error) from error

    def _cache_place(self) -> str | None:
        if self._cache_dir == NOWHERE:
            return None
        from staddle._backup.cache.store import default_place

        return self._cache_dir or default_place(os.environ) or None

    def restore(
        self,
        dataset: str,
        target: str | bytes | os.PathLike[str],
        *,
        backup: str | None = None,
        at: At | None = None,
        paths: Iterable[PathLike] = (),
        include: Sequence[str] = (),
        include_files: Sequence[str] = (),
        exclude: Sequence[str] = (),
        exclude_files: Sequence[str] = (),
        overwrite: Overwrite = "if-changed",
        verify: bool = False,
        delete: bool = False,
        confirm_delete: Callable[[int], None] | None = None,
        dry_run: bool = False,
        retry_s: float = 60.0,
        progress: ProgressCallback | None = None,
    ) -> RestoreReport:
        """Restores a backup, or `paths` of it with everything below them, into the directory `target`.

        `backup` is an id or its first digits. `at` picks the newest backup whose capture began at or before a moment: a datetime,
        a date (its last moment), a string with a time or date, or an age such as "2h" (or a timedelta), by the server's clock.
        Without both, the newest backup is restored. `overwrite` says when an existing file is replaced: "never", "if-changed" or
        "always". Extra files are deleted only with `delete`.

        `include` and `exclude` are patterns as in .gitignore, relative to the backup's root; `include_files` and `exclude_files` hold
        such patterns, and each is read once. Without `include`, everything is included. Data of other files is not fetched; directories
        above included paths are made as in the backup. An invalid pattern is BadRequestError; one that matches nothing is a warning.

        "if-changed" compares type, size and modification time; `verify` compares the content of files instead of their times.
        `dry_run` writes nothing and reports what would be written; with both, the report's problems name every difference.

        `delete` removes, after a restore without problems, what was in the restored directories before and is not in the backup.
        Excluded names, names that are not included, mounted file systems, the target itself and everything outside `paths` stay; links
        are not followed. `confirm_delete` gets the number of paths before anything is changed; an exception that it raises ends the
        restore. With `dry_run`, the report's `deleted_paths` names what would be removed.

        Every file's content is checked against its id before the file gets its name. Damage does not stop a restore: it finishes,
        and then raises DamageError with the report. Otherwise `report.problems` names what could not be written.
        """
        from staddle._restore.run import restore_to_directory

        options = restore_options(
            paths,
            include=include,
            include_files=include_files,
            exclude=exclude,
            exclude_files=exclude_files,
            overwrite=one_of("overwrite", overwrite, get_args(Overwrite)),
            verify=verify,
            delete=delete,
            confirm_delete=confirm_delete,
            dry_run=dry_run,
            retry_s=retry_s,
            progress=progress,
        )
        which = text("dataset", dataset), selector_of(backup, at)
        return reported(lambda: restore_to_directory(self._calls, *which, os.fsencode(target), options))

    def write_archive(
        self,
        dataset: str,
        output: BinarySink,
        *,
        format: ArchiveFormat = "tar",  # noqa: A002 - the word that everybody expects
        backup: str | None = None,
        at: At | None = None,
        paths: Iterable[PathLike] = (),
        include: Sequence[str] = (),
        include_files: Sequence[str] = (),
        exclude: Sequence[str] = (),
        exclude_files: Sequence[str] = (),
        retry_s: float = 60.0,
        progress: ProgressCallback | None = None,
    ) -> RestoreReport:
        """Writes a backup, or `paths` of it with all below them, as an archive to `output`, a binary file that need not be seekable.

        Which backup, and what of it, is said as in `restore`. The format "tar" (pax) holds everything but sockets, and holes of files from 16 MiB on; "zip" has
        neither fifos nor devices, extended attributes, hard links, nor names that are not UTF-8. `report.problems` names every
        path that is not in the archive as it is in the backup. The root directory itself is not in the archive. Memory is bounded.

        A damaged file of up to 16 MiB is left out; at the end DamageError is raised with the report. A larger one that turns out to be
        damaged when a part of it is written raises DamageError without a report. Whenever another exception than DamageError with a report is
        raised, the archive has no end, so that readers refuse it. Does not close `output`.
        """
        from staddle._restore.archive import ToArchive

        options = restore_options(
            paths,
            include=include,
            include_files=include_files,
            exclude=exclude,
            exclude_files=exclude_files,
            retry_s=retry_s,
            progress=progress,
        )
        name, selector = text("dataset", dataset), selector_of(backup, at)
        archive_format = one_of("format", format, get_args(ArchiveFormat))
        archive = ToArchive(
            self._calls, name, selector, output, archive_format=archive_format, options=options
        )
        return reported(archive.run)

    # ------------------------------------------------------------------------------------------- own objects

    def upload(
        self,
        dataset: str,
        *,
        kind: str = "auto",
        scope: str = "whole",
        tags: Mapping[str, str] | None = None,
        host: str = "",
        root: str = "",
        new_root: bool = False,
        retry_s: float = UPLOAD_RETRY_S,
        progress: ProgressCallback | None = None,
    ) -> Upload:
        """Opens a backup of objects that the caller passes in:

            with client.upload("orders") as upload:
                upload.put("a.json", b"{}")
                upload.put("dump.sql", open("dump.sql", "rb"))
            print(upload.report.backup.id)

        A clean exit commits it, an exception aborts it. Under the scope "whole" the backup holds what was put and nothing else;
        under "changes" it is the base (the newest backup) with what was put, and without what was removed.
        """
        options = UploadOptions(
            dataset=text("dataset", dataset),
            kind=choice("kind", kind, BackupKind),
            scope=choice("scope", scope, Scope),
            tags=dict(tags or {}),
            host=text("host", host),
            root=text("root", root),
            new_root=new_root,
            retry_s=retry_s,
            progress=progress,
        )
        return Upload(self._calls, options)

    def backup_stream(
        self,
        dataset: str,
        *,
        name: PathLike,
        source: IO[bytes] | Iterable[bytes],
        kind: str = "auto",
        tags: Mapping[str, str] | None = None,
        mode: int | None = None,
        mtime_ns: int | None = None,
        profile: str = Profile.CONTENT_DEFINED,
        host: str = "",
        root: str = "",
        new_root: bool = False,
        max_removed_percent: float | None = None,
        retry_s: float = UPLOAD_RETRY_S,
        progress: ProgressCallback | None = None,
    ) -> BackupReport:
        """Makes a backup of one file, `name`, whose bytes come from `source`: a binary file, or an iterable of bytes.

        Reads `source` once, from its current position to its end; it need not be seekable. If `source` raises, no backup is made.
        If it has become empty, or has lost more than `max_removed_percent` of the bytes of the newest backup, that is
        TooMuchRemovedError, and no backup is made; 100 allows everything.
        Temporary failures are retried for `retry_s`: the upload resumes after the last byte that the server has stored durably.
        """
        from staddle._backup.dataset_backups import DatasetBackups
        from staddle._backup.selection import check_percent, check_stream

        check_percent(max_removed_percent)
        with self.upload(
            dataset,
            kind=kind,
            tags=tags,
            host=host,
            root=root,
            new_root=new_root,
            retry_s=retry_s,
            progress=progress,
        ) as upload:
            upload.put(name, source, mode=mode, mtime_ns=mtime_ns, profile=profile)
            if not new_root and (max_removed_percent is not None or not upload.data_bytes):
                newest = DatasetBackups(self._calls, dataset, Retry(budget_s=retry_s)).newest()
                check_stream(dataset, newest, upload.data_bytes, max_percent=max_removed_percent)
        return upload.report

    # ------------------------------------------------------------------------------------------- the protocol itself

    def call(
        self, method: str, request: Message, *, timeout_s: float | None = None, retry: Retry | None = None
    ) -> Any:
        """Makes a unary call of the protocol by its name, with a message of staddle.v1, for calls without a method here.

        This client's deadline, retries and errors apply. Returns the method's response message.
        """
        return self._calls.call(method, request, timeout_s=timeout_s, retry=retry)

    def stream(
        self, method: str, request: Message, *, timeout_s: float | None = None, retry: Retry | None = None
    ) -> Iterator[Any]:
        """The messages of a streamed answer (Restore). The call is retried until its first message arrives, and not after that.

        Closing the iterator cancels the call.
        """
        return self._calls.stream(method, request, timeout_s=timeout_s, retry=retry)

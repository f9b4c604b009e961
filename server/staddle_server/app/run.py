"""Assemble a server, run it, and stop it without losing anything."""

import contextlib
import errno
import gc
import logging
import os
import resource
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import grpc
from staddle._base.figures import duration

from staddle_server import __version__
from staddle_server.app import (
    allocator,
    bootstrap,
    generation,
    health_probe,
    http_listener,
    tls,
    unix_sockets,
)
from staddle_server.app.addresses import Address, UnixAddress, parse_address
from staddle_server.app.bootstrap import Rebuilt, Rooms, open_rooms
from staddle_server.app.data_directory import (
    ClientConfig,
    DataDirectory,
    client_address,
    read_client_config,
    write_client_config,
)
from staddle_server.app.disk_reserve import Keeper, give_up_at_start, reserves_of
from staddle_server.app.notify_file import targets_of
from staddle_server.app.reload import Reloading
from staddle_server.app.second_site import SecondSite
from staddle_server.app.service import Service
from staddle_server.app.service_manager import Manager, Pulse
from staddle_server.app.settings import LISTEN_DEFAULT, OperatorError, Settings
from staddle_server.app.signals import StopRequest, listening_for_signals, watching_threads
from staddle_server.app.traces import traced
from staddle_server.base.errors import StaddleError, Unauthenticated
from staddle_server.base.limits import FILES_WANTED
from staddle_server.base.observer import NOTHING, Observer
from staddle_server.base.threads import is_no_thread
from staddle_server.store.locks import described
from staddle_server.store.segment_cache import SegmentCache
from staddle_server.store.space import Space
from staddle_server.upkeep.rebuild.run import Show

_log = logging.getLogger(__name__)

GC_THRESHOLD: Final = 50_000
"""New objects between two searches for reference cycles."""


@dataclass(frozen=True)
class Started:
    """A server that serves."""

    settings: Settings
    listening: Address | UnixAddress
    http: Address | None
    """Where it serves HTTP, if it does."""
    made: bool
    """The data directory was created just now."""
    joined: bool = False
    """It was created for a further server of an existing catalog and store."""


class Extras(NamedTuple):
    """The HTTP listener, if there is one, and what hears of the server's work."""

    door: http_listener.HttpDoor | None
    observer: Observer


def data_directory(settings: Settings) -> DataDirectory:
    """Return the data directory with what the settings give to a new one."""
    return DataDirectory(settings.data, settings.store, settings.catalog, settings.master_key)


def initialise(directory: DataDirectory, settings: Settings) -> bool:
    """Create a data directory with its client.toml; return whether catalog and store are new too. The caller
    has claimed it.

    Unusable certificates raise TlsError before anything is created.
    """
    listening = parse_address(LISTEN_DEFAULT) if settings.listen.picks_port else settings.listen
    client = local_client(settings, listening, token="")
    with directory.catalog_place.alone():
        token = bootstrap.initialise(directory, time.time_ns())
    write_client_config(directory.client_toml, replace(client, token=token))
    return bool(token)


def _made(directory: DataDirectory) -> str | None:
    """Create the data directory unless it exists; return its admin token, which is empty if it joined an
    existing catalog. None: it existed.
    """
    with directory.catalog_place.alone():
        if not directory.is_complete():
            return bootstrap.initialise(directory, time.time_ns())
    bootstrap.check_given_key(directory)
    directory.place.check()
    return None


def rebuild(directory: DataDirectory, settings: Settings, show: Show, *, dry_run: bool) -> Rebuilt:
    """Rebuild the catalog from the store, with a matching client.toml. The caller has locked the directory.

    Unusable certificates raise TlsError before anything is created.
    """
    listening = parse_address(LISTEN_DEFAULT) if settings.listen.picks_port else settings.listen
    client = local_client(settings, listening, token="")
    rebuilt = bootstrap.rebuild(directory, time.time_ns(), show, dry_run=dry_run)
    if rebuilt.token:
        write_client_config(directory.client_toml, replace(client, token=rebuilt.token))
    return rebuilt


def run_server(
    settings: Settings, announce: Callable[[Started], None], reread: Callable[[], Settings]
) -> None:
    """Serve until a signal says stop, then drain; return when everything is durable and closed.

    After a SIGHUP, `reread` returns the settings again; see Reloading. Raises OperatorError or StaddleError
    if it cannot start.
    """
    accepted = _tune_process()
    # Before anything is created or changed: they may be unusable.
    certificates = _certificates(settings)
    targets_of(settings.data, settings.notify, os.environ)
    directory = data_directory(settings)
    manager = Manager(os.environ)
    manager.status("Starting")
    with (
        _extras(settings, certificates) as extras,
        directory.claimed(),
        listening_for_signals(hangup=True) as stop,
        watching_threads(stop),
    ):
        given_up = give_up_at_start(directory.path, directory.store)
        new_token = _made(directory)
        with directory.store_locked(), open_rooms(directory) as opened:
            warn_of_readable([directory.master_key, directory.client_toml, settings.tls_key])
            generation.leave_mark(directory, opened.blobs, opened.catalog, time.time_ns(), opened.looked)
            swept = opened.blobs.sweep()
            _event(
                "starting",
                version=__version__,
                allocator=allocator.describe(accepted),
                temporary_files_swept=swept,
                reserve_bytes_given_up=given_up.size_bytes,
                reserve_inodes_given_up=given_up.inodes,
            )
            space, keeper = _room_on_disk(directory, settings)
            reloading = Reloading(settings, reread, space, certificates)
            with (
                keeper.running(),
                _own_address(manager) as own,
                _serving(
                    reloading, opened, space, certificates, own, extras=extras, place=directory.identity()
                ) as listening,
                _pulse(manager, own, listening) as pulse,
            ):
                token = new_token or local_token(opened, directory)
                _keep_client_config(directory.client_toml, local_client(settings, listening, token))
                http = None if extras.door is None else extras.door.address
                announce(Started(settings, listening, http, new_token is not None, new_token == ""))
                _event("serving", address=listening, http=http)
                manager.ready(f"Serving on {listening}")
                _wait(stop, manager, reloading, pulse)
            _leave_mark_of_stop(directory, opened)
    _event("stopped")
    if stop.died:
        raise OperatorError(
            f"the server stopped because its thread {stop.died} died; its log says why. What was acknowledged is durable: start it again"
        )


@contextlib.contextmanager
def _extras(settings: Settings, certificates: tls.ServerCertificates | None) -> Iterator[Extras]:
    """Take the place of the HTTP listener, and begin to observe."""
    with (
        http_listener.door_at(settings.http, certificates) as door,
        traced(NOTHING if door is None else door.observer, settings.traces or "") as observer,
    ):
        yield Extras(door, observer)


def _room_on_disk(directory: DataDirectory, settings: Settings) -> tuple[Space, Keeper]:
    """Return the disk space for backups, and the keeper of the reserve for everything else."""
    reserves = reserves_of(directory.path, directory.store)
    space = Space(
        [str(path) for path in directory.disks()],
        settings.min_free,
        missing_bytes=lambda: reserves.missing_bytes,
        missing_inodes=lambda: reserves.missing_inodes,
    )
    return space, Keeper(space, reserves)


def _wait(stop: StopRequest, manager: Manager, reloading: Reloading, pulse: Pulse) -> None:
    """Return when the server must stop; reload after each SIGHUP until then."""

    def tick() -> None:
        reloading.tick()
        pulse.tick()

    why = stop.wait(lambda: manager.reload(reloading.reload), tick)
    drain_s = reloading.settings.drain_s
    manager.stopping(f"Draining after {why}: open streams may take up to {duration(drain_s)}")
    _event("draining", signal=why, drain_s=drain_s)


def _leave_mark_of_stop(directory: DataDirectory, opened: Rooms) -> None:
    """Make every copy of the catalog from this server's run older than its store."""
    try:
        generation.leave_mark(directory, opened.blobs, opened.catalog, time.time_ns())
    except (StaddleError, OperatorError) as error:
        _log.warning("this stop leaves no mark in the store: %s", error)


def _tune_process() -> dict[str, int]:
    """Set up allocator, file limit and garbage collector for a server; return what the allocator accepted."""
    accepted = allocator.tune()
    raise_file_limit()
    # Entries and chunk references are many, short-lived and without cycles: searching them every 700 took a
    # quarter of a restore of small files.
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    return accepted


def _certificates(settings: Settings) -> tls.ServerCertificates | None:
    """Return the server's certificates, if it uses TLS. Raises TlsError if they are unusable."""
    files = tls.files_of(settings)
    if files is None:
        return None
    certificates = tls.ServerCertificates(files)
    certificates.advise(settings.endpoint.host if isinstance(settings.endpoint, Address) else "")
    return certificates


def warn_of_readable(paths: Iterable[Path | None]) -> None:
    """Log which of these secrets every user of the machine can read: a copy or a mount loses the mode."""
    for path in paths:
        with contextlib.suppress(OSError):
            if path is not None and path.stat().st_mode & stat.S_IROTH:
                _log.warning("every user of this machine can read %s: chmod 600 it", path)


def _keep_client_config(path: Path, config: ClientConfig) -> None:
    """Write client.toml if it has changed; a full disk keeps the old one, and does not stop the server."""
    with contextlib.suppress(OperatorError):
        if read_client_config(path) == {key: value for key, value in asdict(config).items() if value}:
            return
    try:
        write_client_config(path, config)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        _log.warning("%s could not be written because the disk is full: it may name an older address", path)


def raise_file_limit() -> None:
    """Raise the process's limit of open files, up to FILES_WANTED: the usual 1,024 are few for connections
    and packs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _event(message: str, **fields: object) -> None:
    _log.info(message, extra={"fields": fields})


@contextlib.contextmanager
def _own_address(manager: Manager) -> Iterator[UnixAddress | None]:
    """Return where the server checks itself, separately from other callers; None if no manager asks, or
    without such a place.
    """
    with contextlib.ExitStack() as stack:
        own = None
        if manager.listens:
            # systemd gives several directories as one text.
            parent = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
            try:
                own = stack.enter_context(unix_sockets.private(parent))
            except unix_sockets.ListenError as error:
                _log.warning("the service manager is only told that the process lives: %s", error)
        yield own


@contextlib.contextmanager
def _pulse(manager: Manager, own: UnixAddress | None, listening: Address | UnixAddress) -> Iterator[Pulse]:
    """Check the server at its own address, for the manager, while the context lasts."""
    if own is None:
        yield Pulse(
            manager, lambda _timeout_s: f"Serving on {listening}; it does not check itself, see the log"
        )
        return
    with grpc.insecure_channel(own.target) as channel:
        yield Pulse(manager, lambda timeout_s: health_probe.describe(channel, str(listening), timeout_s))


@contextlib.contextmanager
def _serving(
    reloading: Reloading,
    opened: Rooms,
    space: Space,
    certificates: tls.ServerCertificates | None,
    own: UnixAddress | None,
    *,
    extras: Extras,
    place: str,
) -> Iterator[Address | UnixAddress]:
    """Listen and serve while the context lasts, then drain; after an error, without waiting for streams."""
    settings = reloading.settings
    credentials = None if certificates is None else certificates.credentials()
    service = Service(
        opened.catalog,
        opened.blobs,
        opened.keys,
        settings,
        space=space,
        cache=_segment_cache(settings),
        second=_second_site(settings),
        certificates=(lambda: None) if certificates is None else certificates.validity,
        observer=extras.observer,
    )
    reloading.follow_targets(service.notifier.set_targets)
    if said := described(opened.blobs):
        _log.info("%s", said)
    drain_s = 0.0
    listen = settings.listen
    made = None
    try:
        port = _start(service, settings, credentials, own)
        if isinstance(listen, UnixAddress):
            made = unix_sockets.identity(listen)
        listening = listen.with_port(port)
        if extras.door is not None:
            extras.door.open(service)
        service.join(str(settings.endpoint or reachable(listening)), place)
        yield listening
        drain_s = reloading.settings.drain_s
    finally:
        service.drain(drain_s)
        if isinstance(listen, UnixAddress):
            unix_sockets.remove(listen, made)


def _second_site(settings: Settings) -> SecondSite | None:
    """Return the second place that the settings name, if any."""
    if not settings.replicate_to:
        return None
    return SecondSite(data_directory(settings), settings.replicate_to, os.environ)


def reachable(listening: Address | UnixAddress) -> Address | UnixAddress:
    """Return where another machine probably reaches a server that listens there."""
    if isinstance(listening, Address) and listening.is_wildcard:
        return Address(socket.gethostname(), listening.port)
    return listening


def _segment_cache(settings: Settings) -> SegmentCache | None:
    """The cache for restores. None: the settings have none, and an earlier one is removed."""
    path = settings.data / "cache"
    if not settings.cache_bytes:
        shutil.rmtree(path, ignore_errors=True)
        return None
    try:
        return SegmentCache(str(path), settings.cache_bytes)
    except OSError as error:
        raise OperatorError(f"cannot use the cache {path}: {error.strerror}") from error


@contextlib.contextmanager
def _places(settings: Settings, own: UnixAddress | None) -> Iterator[None]:
    """Prepare the places of the server's Unix sockets, if it has any."""
    with contextlib.ExitStack() as places:
        if isinstance(settings.listen, UnixAddress):
            places.enter_context(unix_sockets.place_for(settings.listen, settings.socket_mode))
        if own is not None:
            places.enter_context(unix_sockets.place_for(own, 0o600))
        yield


def _start(
    service: Service,
    settings: Settings,
    credentials: grpc.ServerCredentials | None,
    own: UnixAddress | None,
) -> int:
    listen = settings.listen
    own_target = "" if own is None else own.target
    try:
        return service.start(listen.target, credentials, own_target, _places(settings, own))
    except RuntimeError as error:
        if is_no_thread(error):
            raise
        raise unix_sockets.ListenError(
            f"cannot listen on {listen}: another program listens there, or this machine does not have that address; "
            "choose another with --listen"
        ) from error


def local_token(opened: Rooms, directory: DataDirectory) -> str:
    """Return the token in client.toml; a new one if the file is missing, unless other servers share the
    catalog.

    Leaves an unknown one alone: it may have been revoked, and a restart must not undo that.
    """
    token = read_client_config(directory.client_toml).get("token")
    now_ns = time.time_ns()
    if token is None:
        return bootstrap.local_token(opened, now_ns, shared=directory.catalog_place.is_shared)
    try:
        opened.catalog.tokens.authenticate(token, now_ns)
    except Unauthenticated:
        _log.warning(
            "the token in %s is unknown; remove the file, and the next start creates a new one",
            directory.client_toml,
        )
    return token


def local_client(settings: Settings, listening: Address | UnixAddress, token: str) -> ClientConfig:
    """Return what the local command needs: it trusts exactly the server's own certificate."""
    address = client_address(listening, settings.endpoint)
    files = tls.files_of(settings)
    if files is None:
        return ClientConfig(str(address), token)
    mutual = files.client_ca is not None
    return ClientConfig(
        str(address),
        token,
        ca=str(files.certificate),
        cert=str(files.certificate) if mutual else "",
        key=str(files.key) if mutual else "",
        server_name=tls.name_to_expect(files, address.host),
    )

"""The Staddle client: hand data to the service, and get it back.

from staddle import Client

with Client.from_config() as client:
    client.backup("/srv/data", dataset="www")
    client.restore("www", "/tmp/out", at="2h")
"""

from typing import TYPE_CHECKING, Any, Final

from staddle._errors import (
    AccessDeniedError,
    AlreadyExistsError,
    AuthenticationError,
    BackupNotFoundError,
    BadRequestError,
    CancelledError,
    ConfigError,
    ConflictError,
    ConnectError,
    DamageError,
    DatasetNotFoundError,
    DeadlineError,
    ExhaustedError,
    MissingChunksError,
    NoBaseError,
    NotAFileError,
    NotFoundError,
    PathNotFoundError,
    PlanChangedError,
    PreconditionError,
    ProtectedError,
    ProtocolError,
    RootDiffersError,
    ServerError,
    StaddleError,
    TooMuchRemovedError,
    UnavailableError,
    UnfinishedError,
    UnsupportedError,
    UploadClosedError,
    UploadNotFoundError,
)
from staddle._transport.settings import Settings
from staddle._types.backups import (
    Backup,
    BackupKind,
    Change,
    ChangeCounts,
    ChangeType,
    Dataset,
    Drill,
    Hold,
    OpenUpload,
    Profile,
    Scope,
)
from staddle._types.entries import ChunkRef, DigestOrigin, Entry, EntryType, Hole, Xattr
from staddle._types.plan import Amount, BackupPlan, PlannedChange, PlannedPath
from staddle._types.reports import (
    BackupReport,
    EntryCounts,
    PathProblem,
    ProblemKind,
    Progress,
    RestoreReport,
)
from staddle._types.retention import (
    AppliedRetention,
    PlannedBackup,
    Retention,
    RetentionPlan,
    RetentionPolicy,
    RetentionTag,
)
from staddle._types.runs import Event, EventSeverity, Expectation, Run, RunOutcome, Status, Trouble
from staddle._types.server import ChunkerInfo, PeerServer, SecondSite, ServerCondition, ServerInfo, StoreLock

if TYPE_CHECKING:
    from staddle._client import Client
    from staddle._upload.upload import Upload

_LOADED_ON_USE: Final = {"Client": "staddle._client", "Upload": "staddle._upload.upload"}
"""With them come gRPC and protobuf, which take ten times as long to load as the rest."""


def __getattr__(name: str) -> Any:
    if name not in _LOADED_ON_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_LOADED_ON_USE[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "AccessDeniedError",
    "AlreadyExistsError",
    "Amount",
    "AppliedRetention",
    "AuthenticationError",
    "Backup",
    "BackupKind",
    "BackupNotFoundError",
    "BackupPlan",
    "BackupReport",
    "BadRequestError",
    "CancelledError",
    "Change",
    "ChangeCounts",
    "ChangeType",
    "ChunkRef",
    "ChunkerInfo",
    "Client",
    "ConfigError",
    "ConflictError",
    "ConnectError",
    "DamageError",
    "Dataset",
    "DatasetNotFoundError",
    "DeadlineError",
    "DigestOrigin",
    "Drill",
    "Entry",
    "EntryCounts",
    "EntryType",
    "Event",
    "EventSeverity",
    "ExhaustedError",
    "Expectation",
    "Hold",
    "Hole",
    "MissingChunksError",
    "NoBaseError",
    "NotAFileError",
    "NotFoundError",
    "OpenUpload",
    "PathNotFoundError",
    "PathProblem",
    "PeerServer",
    "PlanChangedError",
    "PlannedBackup",
    "PlannedChange",
    "PlannedPath",
    "PreconditionError",
    "ProblemKind",
    "Profile",
    "Progress",
    "ProtectedError",
    "ProtocolError",
    "RestoreReport",
    "Retention",
    "RetentionPlan",
    "RetentionPolicy",
    "RetentionTag",
    "RootDiffersError",
    "Run",
    "RunOutcome",
    "Scope",
    "SecondSite",
    "ServerCondition",
    "ServerError",
    "ServerInfo",
    "Settings",
    "StaddleError",
    "Status",
    "StoreLock",
    "TooMuchRemovedError",
    "Trouble",
    "UnavailableError",
    "UnfinishedError",
    "UnsupportedError",
    "Upload",
    "UploadClosedError",
    "UploadNotFoundError",
    "Xattr",
]

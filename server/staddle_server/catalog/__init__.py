"""The catalog: what exists and who may see it. A commit here is what makes a backup exist."""

from staddle_server.catalog.dialect import SqliteChoice, choose_sqlite
from staddle_server.catalog.engine import Catalog, open_catalog
from staddle_server.catalog.values import (
    Backup,
    BeginUpload,
    Begun,
    ChangeCounts,
    Dataset,
    DurableUpdate,
    ExpiredUpload,
    LeftOverPack,
    MissingChunk,
    MissingRecords,
    NewBackup,
    PendingRecord,
    Principal,
    Tenant,
    Terms,
    Token,
    Upload,
)

__all__ = [
    "Backup",
    "BeginUpload",
    "Begun",
    "Catalog",
    "ChangeCounts",
    "Dataset",
    "DurableUpdate",
    "ExpiredUpload",
    "LeftOverPack",
    "MissingChunk",
    "MissingRecords",
    "NewBackup",
    "PendingRecord",
    "Principal",
    "SqliteChoice",
    "Tenant",
    "Terms",
    "Token",
    "Upload",
    "choose_sqlite",
    "open_catalog",
]

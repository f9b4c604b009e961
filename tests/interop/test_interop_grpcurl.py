"""grpcurl, a generic client: with reflection it needs no files of Staddle."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from interop_build import PROTOS
from interop_clients import Ran

SERVICE = "staddle.v1.StaddleService"
# Small files as one writes them by hand: an entry with its data is one JSON line.
LINES = (
    {"parts": [{"begin": {"dataset": "notes", "kind": "BACKUP_KIND_FULL", "tags": {"by": "hand"}}}]},
    {"parts": [{"entry": {"path": "a.txt", "data": base64.b64encode(b"hello\n").decode(), "mode": 0o640}}]},
    {"parts": [{"entry": {"path": "deep/er/naïve ☂.txt", "data": base64.b64encode(b"rain").decode()}}]},
    {"parts": [{"entry": {"path": "empty", "data": ""}}]},
    {"parts": [{"entry": {"path": "link", "type": "ENTRY_TYPE_SYMLINK", "link_target": "a.txt"}}]},
    {"parts": [{"finish": {"entry_count": 4, "data_bytes": 10}}]},
)
PATHS = ["a.txt", "deep", "deep/er", "deep/er/naïve ☂.txt", "empty", "link"]


class Said(Ran):
    """The result of grpcurl."""

    @property
    def failure(self) -> tuple[str, str]:
        """The code and the reason, as they stand in what a person sees."""
        assert self.exit_status >= 64, self.output + self.errors
        code = re.search(r"Code: (\w+)", self.errors)
        reason = re.search(r'"reason": "(\w+)"', self.errors)
        assert code is not None, self.errors
        assert reason is not None, self.errors
        assert '"domain": "staddle"' in self.errors
        return code[1], reason[1]


@dataclass(frozen=True)
class Grpcurl:
    """grpcurl against one server, with a token or without."""

    program: Path
    address: str
    token: str | None = None

    def run(self, *words: str, options: tuple[str, ...] = (), typed: str = "") -> Said:
        """One call; `typed` is what it reads from standard input."""
        header = (
            () if self.token is None else ("-expand-headers", "-H", "authorization: Bearer ${STADDLE_TOKEN}")
        )
        done = subprocess.run(
            [str(self.program), "-plaintext", *header, *options, self.address, *words],
            env={**os.environ, "STADDLE_TOKEN": self.token or ""},
            input=typed,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def call(self, method: str, *lines: dict, options: tuple[str, ...] = ()) -> Said:
        """A call of our service with these messages, as JSON lines on standard input."""
        typed = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines or ({},))
        return self.run(f"{SERVICE}/{method}", options=(*options, "-d", "@"), typed=typed)


@pytest.fixture
def admin(grpcurl_program: Path, running) -> Grpcurl:
    return Grpcurl(grpcurl_program, running.address, running.token("admin"))


@pytest.fixture
def kept(admin: Grpcurl) -> dict:
    """A backup that grpcurl made."""
    return admin.call("Backup", *LINES).answer


@pytest.fixture
def health_protos(tmp_path: Path) -> tuple[str, ...]:
    """For a call without reflection, which wants a token: health, described in a file."""
    described = descriptor_pb2.FileDescriptorSet()
    health_pb2.DESCRIPTOR.CopyToProto(described.file.add())
    (tmp_path / "health.binpb").write_bytes(described.SerializeToString())
    return ("-protoset", str(tmp_path / "health.binpb"))


# --- reflection and health


def test_reflection_lists_the_services_for_any_valid_token(grpcurl_program: Path, running) -> None:
    reader = Grpcurl(grpcurl_program, running.address, running.token("reader"))
    assert SERVICE in reader.run("list").output.split()
    assert f"{SERVICE}.Restore" in reader.run("list", SERVICE).output.split()
    service = reader.run("describe", SERVICE).output
    assert (
        "rpc Backup ( stream .staddle.v1.BackupRequest ) returns ( .staddle.v1.BackupResponse );" in service
    )
    assert (
        "rpc Restore ( .staddle.v1.RestoreRequest ) returns ( stream .staddle.v1.RestoreResponse );"
        in service
    )
    assert "optional uint32 mode = 4;" in reader.run("describe", "staddle.v1.Entry").output


@pytest.mark.parametrize("token", [None, "staddle_not_a_token"])
def test_reflection_is_refused_without_a_valid_token(
    grpcurl_program: Path, running, token: str | None
) -> None:
    said = Grpcurl(grpcurl_program, running.address, token).run("list")
    assert said.exit_status != 0
    assert "code = Unauthenticated" in said.errors
    assert SERVICE not in said.output + said.errors


def test_health_needs_no_token(grpcurl_program: Path, running, health_protos: tuple[str, ...]) -> None:
    said = Grpcurl(grpcurl_program, running.address).run("grpc.health.v1.Health/Check", options=health_protos)
    assert said.answer == {"status": "SERVING"}


# --- a backup by hand, and back


def test_json_lines_on_standard_input_make_a_backup(kept: dict) -> None:
    assert kept["upload"]["state"] == "UPLOAD_STATE_COMMITTED"
    made = kept["backup"]
    assert (made["kind"], made["number"], made["data_bytes"]) == ("BACKUP_KIND_FULL", "1", "10")
    assert made["entry_count"] == str(len(PATHS))
    assert made["tags"] == {"by": "hand"}


def test_datasets_backups_and_entries_are_listed(admin: Grpcurl, kept: dict) -> None:
    datasets = admin.call("ListDatasets").answer["datasets"]
    assert [each["name"] for each in datasets] == ["notes"]
    assert datasets[0]["newest_backup"] == kept["backup"]
    assert admin.call("ListBackups", {"dataset": "notes"}).answer["backups"] == [kept["backup"]]
    listed = admin.call("ListEntries", {"dataset": "notes", "recursive": True}).answer
    assert listed["backup_id"] == kept["backup"]["id"]
    assert [each["path"] for each in listed["entries"]] == PATHS


def test_a_list_continues_after_its_page(admin: Grpcurl, kept: dict) -> None:
    query = {"dataset": "notes", "recursive": True, "page_size": 4}
    first = admin.call("ListEntries", query).answer
    second = admin.call("ListEntries", {**query, "page_token": first["next_page_token"]}).answer
    assert [each["path"] for each in first["entries"] + second["entries"]] == PATHS
    assert len(first["entries"]) == 4
    assert "next_page_token" not in second


def test_a_restore_returns_the_typed_data_and_ends_with_its_counts(admin: Grpcurl, kept: dict) -> None:
    decoder, text, parts = json.JSONDecoder(), admin.call("Restore", {"dataset": "notes"}).output.strip(), []
    while text:
        message, end = decoder.raw_decode(text)
        parts += message["parts"]
        text = text[end:].strip()
    assert parts[0]["header"]["backup"] == kept["backup"]
    assert parts[-1] == {"end": {"entry_count": str(len(PATHS)), "data_bytes": "10"}}
    entries = {part["entry"]["path"]: part["entry"] for part in parts[1:-1]}
    assert list(entries) == PATHS
    assert base64.b64decode(entries["a.txt"]["data"]) == b"hello\n"
    assert entries["a.txt"]["mode"] == 0o640
    assert base64.b64decode(entries["deep/er/naïve ☂.txt"]["data"]) == b"rain"
    assert entries["empty"]["data"] == ""
    assert entries["link"]["link_target"] == "a.txt"
    assert entries["deep"]["implied"]


def test_a_range_of_a_file_is_read(admin: Grpcurl, kept: dict) -> None:
    asked = {"dataset": "notes", "path": "a.txt", "offset_bytes": 1, "length_bytes": 3}
    answer = admin.call("ReadRange", asked).answer
    assert base64.b64decode(answer["data"]) == b"ell"
    assert answer["file_size_bytes"] == "6"
    assert answer["backup_id"] == kept["backup"]["id"]


# --- shown errors


@pytest.mark.parametrize("token", [None, "staddle_not_a_token"])
def test_a_call_without_a_valid_token_is_unauthenticated(
    grpcurl_program: Path, running, token: str | None
) -> None:
    # Reflection would fail first: so with the protos as files, ours and that of the error model.
    own = ("-import-path", str(PROTOS), "-proto", "staddle/v1/service.proto")
    common = Path(error_details_pb2.__file__).parents[2]
    model = ("-import-path", str(common), "-proto", "google/rpc/error_details.proto")
    said = Grpcurl(grpcurl_program, running.address, token).call("ListDatasets", options=(*own, *model))
    assert said.failure == ("Unauthenticated", "UNAUTHENTICATED")


def test_a_reader_may_not_back_up(grpcurl_program: Path, running) -> None:
    reader = Grpcurl(grpcurl_program, running.address, running.token("reader"))
    assert reader.call("Backup", *LINES).failure == ("PermissionDenied", "PERMISSION_DENIED")


def test_objects_of_another_tenant_are_not_found(grpcurl_program: Path, running, kept: dict) -> None:
    stranger = Grpcurl(grpcurl_program, running.address, running.token("admin", running.make_tenant("other")))
    assert stranger.call("ListDatasets").answer == {}
    for method in ("ListBackups", "GetBackup", "Restore", "ListEntries"):
        assert stranger.call(method, {"dataset": "notes"}).failure == ("NotFound", "DATASET_NOT_FOUND")
    upload = {"upload_id": kept["upload"]["id"]}
    assert stranger.call("GetUpload", upload).failure == ("NotFound", "UPLOAD_NOT_FOUND")


def test_input_that_ends_without_finish_makes_no_backup_and_says_how_to_resume(admin: Grpcurl) -> None:
    said = admin.call("Backup", *LINES[:3])
    assert said.failure == ("Canceled", "UNFINISHED_STREAM")
    found = re.search(r'"upload": "([0-9a-f]{32})"', said.errors)
    assert found is not None, said.errors
    assert admin.call("ListBackups", {"dataset": "notes"}).answer == {}

    upload = admin.call("ResumeUpload", {"upload_id": found[1]}).answer["upload"]
    assert upload["state"] == "UPLOAD_STATE_OPEN"
    assert upload["durable"]["entry_count"] == "2"
    going_on = {
        "upload_id": upload["id"],
        "epoch": upload["epoch"],
        "position": upload["durable"]["position"],
    }
    rest = admin.call("Backup", {"parts": [{"continue_upload": going_on}]}, *LINES[3:])
    assert rest.answer["backup"]["entry_count"] == str(len(PATHS))


def test_wrong_counts_make_no_backup(admin: Grpcurl) -> None:
    wrong = {"parts": [{"finish": {"entry_count": 5, "data_bytes": 10}}]}
    assert admin.call("Backup", *LINES[:-1], wrong).failure == ("FailedPrecondition", "COUNT_MISMATCH")
    assert admin.call("ListBackups", {"dataset": "notes"}).answer == {}


@pytest.mark.parametrize(
    ("method", "query", "failure"),
    [
        ("ListDatasets", {"page_token": "bm9uZSBvZiBvdXJz"}, ("InvalidArgument", "BAD_PAGE_TOKEN")),
        ("ListEntries", {"dataset": "notes", "page_token": "?"}, ("InvalidArgument", "BAD_PAGE_TOKEN")),
        ("ListDatasets", {"page_size": 1001}, ("InvalidArgument", "BAD_FIELD")),
        ("Restore", {"dataset": "notes", "paths": ["nowhere"]}, ("NotFound", "PATH_NOT_FOUND")),
        (
            "ReadRange",
            {"dataset": "notes", "path": "deep", "length_bytes": 1},
            ("FailedPrecondition", "NOT_A_FILE"),
        ),
        ("GetBackup", {"dataset": "notes", "backup": {"backup": "0123"}}, ("NotFound", "BACKUP_NOT_FOUND")),
    ],
)
def test_an_impossible_request_gets_a_code_and_a_reason(
    admin: Grpcurl, kept: dict, method: str, query: dict, failure: tuple[str, str]
) -> None:
    assert admin.call(method, query).failure == failure


def test_a_page_token_of_another_query_is_refused(admin: Grpcurl, kept: dict) -> None:
    token = admin.call("ListEntries", {"dataset": "notes", "page_size": 1}).answer["next_page_token"]
    other = {"dataset": "notes", "page_size": 1, "recursive": True, "page_token": token}
    assert admin.call("ListEntries", other).failure == ("InvalidArgument", "BAD_PAGE_TOKEN")

"""docs/protocol.md is true: its transcripts, its algorithm, its tables."""

import ast
import re
from collections.abc import Iterator

import pytest
from blake3 import blake3
from doc_pages import DOCS, Block, blocks
from staddle.chunking import ChunkerParameters, Cutter
from staddle.v1 import errors_pb2, resources_pb2, service_pb2
from staddle_server.api import convert_runs, slots
from staddle_server.api.error_table import CODES
from staddle_server.api.grpc import server
from staddle_server.base import errors, limits, memory_budget
from staddle_server.upkeep.lifecycle import planning
from wire_transcript import SERVICE, Transcript

PAGE = DOCS / "protocol.md"
TEXT = PAGE.read_text()
PROTO = (DOCS.parent / "protos" / "staddle" / "v1" / "errors.proto").read_text()


def section(title: str) -> str:
    """The text below a heading."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def rows(title: str) -> list[list[str]]:
    """The cells of a section's last table, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line][1:]


def exchanges() -> Iterator[tuple[Block, Block]]:
    """Each request with what is shown as its answer."""
    shown = [block for block in blocks(PAGE) if block.words[:1] == ("json",)]
    assert len(shown) % 2 == 0
    return zip(shown[::2], shown[1::2], strict=True)


# --- examples


def test_every_transcript_matches_the_answers_of_the_server(running) -> None:
    transcript = Transcript(running.stub())
    wrong = [
        f"line {answer.line}: {each}"
        for request, answer in exchanges()
        for each in transcript.play(request, answer)
    ]
    assert wrong == []


def test_a_wrong_transcript_is_noticed(running) -> None:
    (request, answer), *_ = exchanges()
    other = Block(answer.words, answer.text.replace("4194304", "4194305"), answer.line)
    assert len(Transcript(running.stub()).play(request, other)) == 1


def test_the_transcripts_make_every_step_of_both_paths() -> None:
    played = {request.words[1] for request, _ in exchanges()}
    steps = {
        "Backup",
        "GetUpload",
        "ResumeUpload",
        "BeginUpload",
        "FindMissingChunks",
        "PutChunks",
        "PutEntries",
    }
    assert steps | {"CommitUpload", "Restore", "ReadRange", "ListEntries", "ListChanges"} <= played


@pytest.mark.parametrize("seed", [1, 0x5EED, 2**63 - 1])
@pytest.mark.parametrize("size", [65_535, 65_537, 300_001, 900_000])
def test_the_algorithm_of_the_page_cuts_as_the_server_does(seed: int, size: int) -> None:
    (block,) = (block for block in blocks(PAGE) if block.words == ("python", "cutting"))
    names: dict = {}
    exec(compile(ast.parse(block.text), str(PAGE), "exec"), names)
    data = blake3(b"protocol").digest(size)
    expected, position = list(Cutter(ChunkerParameters(seed)).lengths(memoryview(data))), 0
    for length in expected:
        assert names["first_chunk"](data[position:], seed) == length
        position += length


def test_the_parameters_of_the_algorithm_are_those_of_the_server() -> None:
    parameters = ChunkerParameters(1)
    assert (parameters.min_bytes, parameters.avg_bytes, parameters.max_bytes) == (
        64 << 10,
        256 << 10,
        1 << 20,
    )
    assert parameters.normalization == 2


def test_the_content_id_of_the_page_follows_its_algorithm() -> None:
    (block,) = (block for block in blocks(PAGE) if block.words == ("text", "content-id"))
    first, second, material, result = (line.split()[-1] for line in block.text.splitlines())
    assert (blake3(b"hello ").hexdigest(), blake3(b"world\n").hexdigest()) == (first, second)
    assert material == f"06000000{first}06000000{second}"
    made = blake3(bytes.fromhex(material), derive_key_context="staddle.v1 content id")
    assert made.hexdigest() == result
    assert blake3(b"").hexdigest() in section("Content ids")


# --- its tables


def test_every_reason_has_its_row_with_the_code_and_facts_of_the_protos() -> None:
    codes = {name: CODES[each].name for each in errors.StaddleError.__subclasses__() for name in each.reasons}
    assert {cells[0].strip("`"): cells[1] for cells in rows("Errors")} == codes
    in_protos = re.findall(r"// \[([^\]]+)\][^\n]*\n  ERROR_REASON_(\w+) =", PROTO)
    assert {reason for _, reason in in_protos} == set(codes)
    facts = {cells[0].strip("`"): set(cells[2].split(", ")) for cells in rows("Errors")}
    for brackets, reason in in_protos:
        code, _, keys = brackets.replace("and path where it is an entry's", "path").partition(":")
        assert code.partition(",")[0] == codes[reason]
        assert {key.strip() for key in keys.split(",")} - {""} <= facts[reason], reason


def test_every_reason_says_what_to_do() -> None:
    for reason, _, _, what_to_do in rows("Errors"):
        assert what_to_do.endswith("."), reason


def test_every_call_has_its_row_with_its_role_and_shape() -> None:
    table = server.methods(*(Anything(),) * 5, events=Anything())
    seen = {}
    for names, role, shape in rows("All calls"):
        for name in re.findall(r"`(\w+)`", names):
            seen[name] = role
            described = SERVICE.methods_by_name[name]
            assert ("client stream" in shape, "server stream" in shape) == (
                described.client_streaming,
                described.server_streaming,
            )
    assert seen == {name: method.role.name.lower() for name, method in table.items()}
    assert set(seen) == set(SERVICE.methods_by_name)


class Anything:
    """Has every handler: the table of methods is only looked at."""

    def __getattr__(self, name: str) -> str:
        return name


def test_every_kind_scope_and_view_of_the_protos_is_named() -> None:
    for type_ in (resources_pb2.BackupKind, resources_pb2.UploadScope):
        prefix = "BACKUP_KIND_" if type_ is resources_pb2.BackupKind else "UPLOAD_SCOPE_"
        for name in type_.keys():  # noqa: SIM118 - not a dict
            word = name.removeprefix(prefix)
            assert word == "UNSPECIFIED" or word in section("Words")
    for view in ("BASIC", "REFERENCES"):
        assert f"ENTRY_VIEW_{view}" in service_pb2.EntryView.keys()  # noqa: SIM118 - not a dict
        assert view in section("Reading")
    assert len(errors_pb2.ErrorReason.keys()) == len(rows("Errors")) + 1


def size(value: int) -> str:
    """A number as the page writes it."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= unit and value % unit == 0:
            return f"{value // unit} {name}"
    return f"{value:,} bytes"


def run_limits() -> dict[str, str]:
    return {
        "the reason of a failed run": size(limits.RUN_REASON_BYTES_MAX),
        "reported runs without an upload: of a dataset; of a tenant": f"{limits.REPORTS_DATASET_MAX}, then the oldest goes; "
        f"{limits.REPORTS_TENANT_MAX:,}, then TOO_MANY",
        "datasets of a tenant that are known from reports alone": f"{limits.REPORTED_DATASETS_MAX:,}",
        "an expectation: shortest period; longest period, longest grace": f"{convert_runs.EXPECT_S_MIN // 60} min; "
        f"{limits.EXPECT_S_MAX // (366 * 86400)} years",
    }


def test_the_limits_are_those_of_the_server() -> None:
    table = {cells[0]: cells[1] for cells in rows("Limits")}
    known = limits
    assert table == {
        "a message": size(known.MESSAGE_BYTES_MAX),
        "parts in a message": f"{known.PARTS_PER_MESSAGE_MAX:,}",
        "extended attributes, holes and chunk references in a message": f"{known.ITEMS_PER_MESSAGE_MAX:,}",
        "PutChunks: `data`; what it inflates to; chunks": f"{size(known.PUT_CHUNKS_BYTES_MAX)}; "
        f"{size(known.PUT_CHUNKS_INFLATED_BYTES_MAX)}; {known.CHUNKS_PER_CALL_MAX:,}",
        "a chunk": f"1 byte to {size(known.CHUNK_BYTES_MAX)}",
        "FindMissingChunks: digests": f"{known.CHUNKS_PER_CALL_MAX:,}",
        "PutEntries: changes": f"{known.ENTRIES_PER_CALL_MAX:,}",
        "chunks that entries wait for": f"{known.MISSING_CHUNKS_MAX:,}",
        "`zero_bytes` of a part": size(known.ZERO_BYTES_MAX),
        "a file": f"2^{known.FILE_BYTES_MAX.bit_length() - 1} bytes",
        "ReadRange": size(known.READ_RANGE_BYTES_MAX),
        "Restore: paths": f"{known.RESTORE_PATHS_MAX:,}",
        "page of datasets or backups; of entries or changes; of GetUpload": f"{known.SHORT_PAGE_SIZE_MAX:,}; "
        f"{known.PAGE_SIZE_MAX:,}; 4,096",
        "a path; components; a component": f"{size(known.PATH_BYTES_MAX)}; {known.PATH_COMPONENTS_MAX:,}; "
        f"{known.COMPONENT_BYTES_MAX:,} bytes",
        "link target": size(known.LINK_TARGET_BYTES_MAX),
        "owner, group": f"{size(known.OWNER_BYTES_MAX)} each",
        "link group": size(known.LINK_GROUP_BYTES_MAX),
        "extended attributes: number; name; value": f"{known.XATTRS_MAX:,}; {size(known.XATTR_NAME_BYTES_MAX)}; "
        f"{size(known.XATTR_VALUE_BYTES_MAX)}",
        "holes": f"{known.HOLES_MAX:,}",
        "attributes and holes of an entry together": size(known.ATTRIBUTES_BYTES_MAX),
        "dataset name, host": size(known.DATASET_BYTES_MAX),
        "`request_id`, `fingerprint`": size(known.REQUEST_ID_BYTES_MAX),
        "`root`": size(known.ROOT_BYTES_MAX),
        "tags: number; key; value": f"{known.TAGS_MAX}; {size(known.TAG_KEY_BYTES_MAX)}; {size(known.TAG_VALUE_BYTES_MAX)}",
        "an error's status": size(known.ERROR_STATUS_BYTES_MAX),
        "Backup and Restore streams at once, uploads being written": f"{known.STREAMS_MAX} (`limits.streams_max`), of one tenant three in four; "
        f"{known.UPLOADS_OPEN_MAX}, of one tenant {known.UPLOADS_OPEN_TENANT_MAX}",
        "retention plans being made at once; of one tenant; backups that one deletes": f"{planning.PLANS_MAX}; {planning.PLANS_TENANT_MAX}; "
        f"{known.RETENTION_DELETIONS_MAX:,}",
        "memory for what calls hold decoded (entries, pages, lists); of one tenant; what a call has without asking": (
            f"{size(known.DECODED_BYTES_MAX)}; {size(known.DECODED_TENANT_BYTES_MAX)}; {size(known.DECODED_CALL_BYTES)} each for its message, pages and entries; "
            f"who needs more waits up to {memory_budget.WAIT_S:.0f} s"
        ),
        "a hold's reason": size(known.HOLD_REASON_BYTES_MAX),
        **run_limits(),
        "minimum retention, and how far ahead a backup is retained": f"{known.RETENTION_S_MAX // (366 * 86400)} years",
        "a policy: each number; tags; as JSON": f"{known.RETENTION_COUNT_MAX:,}; {known.RETENTION_TAGS_MAX}; "
        f"{size(known.POLICY_BYTES_MAX)}",
        "a Backup stream's first message; any later one, in or out": f"within {slots.FIRST_S:.0f} s; "
        f"{slots.IDLE_S / 60:.0f} min, then the call ends with CANCELLED",
        "connections": f"{known.CONNECTIONS_MAX:,}; one without a call is closed after "
        f"{dict(server.OPTIONS)['grpc.max_connection_idle_ms'] // 60_000} min",
        "calls without a stream at once; of one tenant; of one token": f"{known.CALLS_MAX}; "
        f"{known.CALLS_TENANT_MAX}; {known.CALLS_TOKEN_MAX}; more wait up to {slots.WAIT_S:.0f} s",
        "the message of such a call": f"within {slots.ARRIVING_S / 60:.0f} min",
        "lease, life of an upload": f"{known.LEASE_S // 60} min, {known.UPLOAD_LIFE_S // 86400} days "
        "(`limits.upload_lease`, `limits.upload_life`)",
    }

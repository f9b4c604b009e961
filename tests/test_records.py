"""This table lists every change of the catalog, with what shows that a catalog without it is older.

A new change needs a row that says so.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SERVER: Final = Path(__file__).parents[1] / "server" / "staddle_server"

RECORDED: Final = "a decision: its record is in the chain of the tenant, so an older catalog is refused"
CHANGES: Final = {
    RECORDED: """
        backups _set_deleted
        clocks put
        expectations remove
        expectations set
        purge purge
        retention apply
        retention change
        retention hold_backup
        retention hold_dataset
        retention release_backup
        retention release_dataset
        retention retain
        tenants create
        tenants keep_records
        tenants set_grace
        tokens create
        tokens revoke
        uploads commit
    """,
    "an open upload is as it was in the older catalog, and its client learns that when it resumes": """
        chunks claim
        packs _begin
        uploads abort
        uploads _begin
        uploads checkpoint
        uploads expire
        uploads renew
        uploads resume
        uploads set_failure
        uploads shorten
    """,
    "where stored data are: packs that the older catalog names and the store lacks are an alarm from the start on": """
        marks begin_pack
        marks condemn
        marks drop_pack
        packs drop_left_over
        packs set_parity
        purge drop_condemned
        salvage publish
        salvage reindex
    """,
    "what was found of stored data: the scrubber, a check or a reader finds it again": """
        drills _set
        packs believe
        packs doubt
        packs mark_damaged
        packs mark_lost
        packs mark_sound
        packs not_needed
        verification put_back
        verification read_whole
        verification take_up
    """,
    "the work of a collection, or when a task was due: it is done again": """
        marks _clear_some
        marks begin_mark
        marks clear_marks
        marks end_claims
        marks end_mark
        marks roots_walked
        marks save_reached
        marks walk_done
        leases acquire
        leases release
        leases renew
        packs note_locked
        purge drop_orphans
        purge forget
        purge note_orphans
        purge remove_records
        tasks claim
        tasks end
        tasks give_up
        tasks note
        settings put
        tenants set_gc_failure
    """,
    "what operators were notified of: what still holds is found and sent again": """
        deliveries claim
        deliveries end
        deliveries give_up
        events change
        events thin
        space_samples note
    """,
    "who serves now: each server says it again with its next heartbeat": """
        servers beat
        servers remove
    """,
    "when a token was last used: its next use is noted again": """
        tokens note_used
    """,
    "a logout: a copy of the cookie counts again until its end, at most 12 hours": """
        tokens end_sessions
    """,
    "what happened once: a list for people, of which an older catalog lacks the latest": """
        collection_runs note
        expectations clamp
        runs _remove
        runs report
    """,
    "what is at another place: the next comparison with it finds out": """
        replicas begin
        replicas drop_gone
        replicas end
        replicas forget
        replicas note_compared
        replicas note_copied
        replicas note_gone
        replicas note_missing
        replicas note_progress
    """,
    "an operator has to allow it again": """
        generations forget
        generations forget_birth
        tenants set_gc_waits
    """,
    "what the store says itself: marks, keys, records and their times": """
        backups mark_records_written
        generations confirm
        generations intend
        tenants _decide
        tenants set_keys
    """,
    "a rebuild, which makes another catalog": """
        rebuild add_backups
        rebuild add_dataset
        rebuild add_packs
        rebuild add_tenant
    """,
}


def changes() -> Iterator[tuple[str, bool]]:
    """Every method of the catalog that writes, by module and name, and whether it keeps a record."""
    for path in sorted((SERVER / "catalog").glob("*.py")):
        for each in ast.walk(ast.parse(path.read_text())):
            if isinstance(each, ast.FunctionDef):
                called = {ast.unparse(call.func) for call in calls(each)}
                if called & {"self._database.write", "self._database.write_once"}:
                    yield f"{path.stem} {each.name}", bool(called & {"keep_pending", "append_pending"})


def calls(inside: ast.AST) -> Iterator[ast.Call]:
    return (each for each in ast.walk(inside) if isinstance(each, ast.Call))


def test_every_change_of_the_catalog_is_listed_with_what_reveals_its_absence() -> None:
    listed = {
        " ".join(line.split()): why
        for why, lines in CHANGES.items()
        for line in lines.split("\n")
        if line.strip()
    }
    found = dict(changes())
    assert found.keys() - listed.keys() == set(), "new changes: keep a record, or say here why none is needed"
    assert listed.keys() - found.keys() == set(), "changes that no longer exist"
    assert {name for name, why in listed.items() if why == RECORDED} == {
        name for name, keeps_record in found.items() if keeps_record
    }


def test_no_token_is_made_or_revoked_without_a_record() -> None:
    made = [
        call
        for path in sorted(SERVER.rglob("*.py"))
        if "tokens" in (text := path.read_text())
        for call in calls(ast.parse(text))
        if ast.unparse(call.func).endswith((".tokens.create", ".tokens.revoke"))
    ]
    assert len(made) == 2
    assert all("record" in {given.arg for given in call.keywords} for call in made)

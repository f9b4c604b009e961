"""`make bench-profile` divides all used processor time, and counts no sleeping thread."""

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cpu
from benchmarks.profiling import sampling, stages
from benchmarks.profiling.sampling import Thread
from benchmarks.programs.processes import Program, ProgramError, catches, processor_s

NS = 10**9
BUSY = """
import threading
from blake3 import blake3
threading.Thread(target=threading.Event().wait, daemon=True).start()
data = bytes(1 << 22)
while True:
    blake3(data).digest()
"""


pytestmark = pytest.mark.usefixtures("results")


@pytest.fixture(scope="module")
def can_sample() -> None:
    """py-spy is installed, and may inspect another process."""
    if sampling.sampler() is None:
        pytest.skip("py-spy is not installed")
    with Program([sys.executable, "-c", BUSY]) as program:
        try:
            with sampling.Sampling(program.pid):
                pass
        except ProgramError as error:
            if "cannot sample" in str(error):
                pytest.skip(str(error))
            raise


# --- stages

THREAD = "/lib/threading.py Thread.run: self._target(*self._args, **self._kwargs)"
POOL = "/lib/concurrent/futures/thread.py _WorkItem.run: result = self.fn(*self.args, **self.kwargs)"


@pytest.mark.parametrize(
    ("stage", "frames"),
    [
        (stages.COMPRESS, [THREAD, "/c/staddle/_backup/send_missing.py Sender._put_chunks: packed = _compressor().compress(data)"]),
        (stages.INFLATE, ["/s/staddle_server/store/frame.py _inflate: raw = decompressor.decompress(frame)"]),
        (stages.HASH, ["/c/staddle/chunking.py Chunker._cut: return [Cut(blake3(piece).digest(), piece)]"]),
        (stages.CUT, ["/c/staddle/chunking.py Chunker._cut_across: window = memoryview(joined)"]),
        (stages.READ, ["/c/staddle/_fs/file_reader.py FileReader._data: piece = os.pread(self.descriptor, size, start)"]),
        (stages.READ, ["/s/staddle_server/store/files.py Files.read: return os.pread(descriptor, length, offset)"]),
        (stages.WRITE, ["/s/staddle_server/store/files.py Files.write: return os.write(descriptor, data)"]),
        (stages.WRITE, ["/c/staddle/_restore/temporary_file.py TemporaryFile._put: count = os.pwrite(self._descriptor, data, at)"]),
        (stages.SEAL, ["/s/staddle_server/store/pack_writer.py PackWriter._seal: filled += encryptor.update_into(a, b)"]),
        (stages.CATALOG, ["/s/staddle_server/catalog/sqlite.py Sqlite.rows_in: cursor.execute(query)"]),
        (stages.CATALOG, ["/s/staddle_server/catalog/uploads.py get: return one(rows)", "/v/sqlalchemy/sql/crud.py f: x"]),
        (stages.WALK, ["/c/staddle/_fs/walk.py Scan._look: status = os.stat(name, dir_fd=level.descriptor)"]),
        (stages.GRPC, [THREAD, POOL, "/v/grpc/_channel.py _blocking: event = call.next_event()"]),
        (stages.PROTOBUF, ["/v/grpc/_common.py _transform: return transformer(message)"]),
        (stages.PROTOBUF, ["/c/staddle/_backup/send_missing.py Sender._put_chunks: request = sv.PutChunksRequest("]),
        (stages.MANIFEST, ["/s/staddle_server/manifest/entries.py pack: return encoder.encode(entry)"]),
        (stages.START, ["<frozen importlib._bootstrap> _find_and_load: ", "/lib/re/_compiler.py _compile: emit(FAILURE)"]),
        (stages.THREADS, [THREAD, "/lib/concurrent/futures/thread.py _worker: work_item = work_queue.get(block=True)"]),
        (stages.THREADS, ["/s/staddle_server/upload/writer.py UploadWriter._writing: with self._lock:"]),
        (stages.OTHER, ["/c/staddle/_backup/run.py _Run._watch: if tell is not None:"]),
        (stages.OTHER, []),
    ],
)  # fmt: skip
def test_a_stack_belongs_to_the_stage_of_its_innermost_known_frame(stage: str, frames: list[str]) -> None:
    assert stages.stage_of(frames) == stage


def test_time_in_the_standard_library_counts_for_its_caller() -> None:
    caller = "/c/staddle/_fs/walk.py Scan._push: names = sorted(listing)"
    assert stages.stage_of([caller, "/lib/os.py fsencode: return filename.encode(encoding)"]) == stages.WALK


def test_waiting_lines_are_distinguished_from_working_ones() -> None:
    waiting = ["work_item = work_queue.get(block=True)", "event = call.next_event()", "with self._lock:"]
    working = ['data = b"".join(pieces)', "hit = self._cache.get(key)", "packed = compressor.compress(data)"]
    assert all(stages.waits(f"/file.py function: {line}") for line in waiting)
    assert not any(stages.waits(f"/file.py function: {line}") for line in working)


def test_a_frame_is_described_with_its_source_line(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text("def work():\n    return blake3(data)\n")
    assert sampling.described(f"work ({source}:2)") == f"{source} work: return blake3(data)"
    assert sampling.described("--torn (half:-7)") == "--torn (half:-7)", "a line read at a bad moment stays"
    assert sampling.described("torn (\0/torn.py:7)") == "\0/torn.py torn: "
    assert sampling.described("torn (/dev/zero:7)") == "/dev/zero torn: ", "and opens no other file"


# --- weighing


def test_a_sleeping_thread_does_not_count_however_often_it_was_sampled() -> None:
    samples = {1: Counter({(stages.HASH, False): 10}), 2: Counter({(stages.THREADS, True): 1000})}
    sampled = sampling.weighed(samples, {1: Thread("work", 2 * NS, 0), 2: Thread("wait", 0, 0)})
    assert sampled.stages == {stages.HASH: 2.0, stages.THREADS: 0.0}
    assert (sampled.cpu_s, sampled.samples) == (2.0, 1010)


def test_threads_without_samples_belong_to_grpc_by_name_or_are_unknown() -> None:
    used = {1: Thread("event_engine", NS, 0), 2: Thread("staddle-server", 3 * NS, 0)}
    assert sampling.weighed({}, used).stages == {stages.GRPC: 1.0, stages.UNSEEN: 3.0}


def test_time_in_the_queue_for_a_processor_is_taken_from_the_frames_that_wait() -> None:
    samples = {1: Counter({(stages.HASH, False): 50, (stages.THREADS, True): 50})}
    sampled = sampling.weighed(samples, {1: Thread("work", 6 * NS, 4 * NS)})
    assert sampled.stages[stages.HASH] == pytest.approx(6 * 50 / 60)
    assert sampled.stages[stages.THREADS] == pytest.approx(6 * 10 / 60)
    assert sum(sampled.stages.values()) == pytest.approx(sampled.cpu_s)


@pytest.mark.usefixtures("can_sample")
def test_a_program_that_hashes_is_seen_to_hash_and_its_sleeping_thread_is_not(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(BUSY)
    with (
        Program([sys.executable, tmp_path / "busy.py"]) as program,
        sampling.Sampling(program.pid) as sampling_it,
    ):
        before_s, _ = processor_s(program.pid)
        program.watch(lambda: processor_s(program.pid)[0] - before_s > 0.7)
    sampled = sampling_it.sampled
    assert sampled.samples > 20
    assert sampled.cpu_s > 0.6
    assert sampled.stages.get(stages.HASH, 0.0) > 0.8 * sampled.cpu_s
    assert sampled.stages.get(stages.THREADS, 0.0) < 0.1 * sampled.cpu_s


@pytest.mark.usefixtures("can_sample")
def test_a_profile_of_no_duration_is_still_written(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(BUSY)
    with Program([sys.executable, tmp_path / "busy.py"]) as program:
        for _ in range(5):
            with sampling.Sampling(program.pid) as sampling_it:
                pass
            assert sampling_it.sampled.stages


def test_a_program_is_seen_to_catch_a_signal() -> None:
    with Program(
        [sys.executable, "-c", "import signal; signal.signal(signal.SIGUSR1, print); signal.pause()"]
    ) as program:
        assert program.watch(lambda: catches(program.pid, signal.SIGUSR1))
        assert not catches(program.pid, signal.SIGUSR2)
    assert not catches(program.pid, signal.SIGUSR1), "it is gone"


def test_a_gate_opens_once_a_process_waits_at_it(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import sys; print(sys.argv[1:])")
    gate = tmp_path / "gate"
    subprocess.run(["mkfifo", gate], check=True)
    with Program([sys.executable, "-c", cpu.GATED, gate, program, "a", "b"]) as gated:
        assert gated.watch(lambda: cpu.opened(gate))
        assert gated.wait().checked().out.strip() == "['a', 'b']"


# --- the command


@pytest.mark.slow
@pytest.mark.usefixtures("can_sample")
def test_each_command_is_divided_into_stages_that_sum_to_its_processor_time(
    tmp_path: Path, results: Path
) -> None:
    (tmp_path / "work").mkdir()
    small = ["--mib", "8", "--files", "80", "--rounds", "2", "--work", str(tmp_path / "work")]
    assert cpu.main(small) == 0
    (path,) = results.glob("profile-*.json")
    record = json.loads(path.read_text())
    assert record["kind"] == "profile"
    assert [case["name"] for case in record["cases"]] == ["image", "tree"]
    for case in record["cases"]:
        assert case["limits"]["hash"] > 0
        assert [each["phase"] for each in case["phases"]] == ["first backup", "rescan", "restore"]
        for each in case["phases"]:
            client = each["client"]
            assert client["samples"] > 0
            assert sum(client["stages"].values()) == pytest.approx(client["cpu_s"])
            assert client["stages"][stages.START] > 0
            assert each["server"]["cpu_s"] >= 0
    assert not list((tmp_path / "work").iterdir()), "it leaves nothing behind"


def some_record() -> dict[str, Any]:
    def side(**spent: float) -> dict[str, Any]:
        named = {stages.HASH: spent.get("hashed", 0.0), stages.OTHER: spent.get("other", 0.0)}
        cpu_s = sum(named.values())
        whole = dict.fromkeys(stages.STAGES, 0.0) | named
        return {
            "cpu_s": cpu_s,
            "kernel_s": 0.25,
            "sampled_cpu_s": cpu_s * 1.1,
            "samples": 400,
            "stages": whole,
        }

    phases = [
        {"phase": name, "wall_s": 1.0, "client": side(hashed=1.0, other=0.5), "server": side(hashed=2.0)}
        for name in ("first backup", "restore")
    ]
    case = {
        "name": "image",
        "title": "an image",
        "data_bytes": 1 << 29,
        "limits": {"hash": 0.3},
        "phases": phases,
    }
    return {"rate": 200, "rounds": 3, "cases": [case]}


def test_the_section_has_core_seconds_a_gib_beside_one_core_alone() -> None:
    lines = cpu.section(some_record())
    assert "| hash | 2.00 | 4.00 | 2.00 | 4.00 | 0.60 |" in lines
    assert "| other Python | 1.00 | 0.00 | 1.00 | 0.00 |  |" in lines
    assert "| all | 3.00 | 4.00 | 3.00 | 4.00 |  |" in lines
    assert "| sampled / alone, CPU | 1.10 | 1.10 | 1.10 | 1.10 |  |" in lines
    assert not any(line.startswith("| cut ") for line in lines), "a stage without time is left out"


@pytest.mark.slow
def test_the_same_figures_give_the_same_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("one.svg", "two.svg"):
        cpu.draw(some_record(), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()

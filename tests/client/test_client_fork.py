"""A forked process opens its own connection, or says why it cannot."""

import subprocess
import sys
import textwrap

import pytest
from memory_servers import nobody
from memory_service import TOKEN, Running


def run(program: str, listening: Running, server: str = "") -> list[str]:
    """The output of a program and of the children that it forks."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), server or listening.address, TOKEN],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("use", ["client.info()", "list(client.datasets())"])
def test_after_a_fork_parent_and_child_both_work(listening: Running, use: str, servers: int) -> None:
    program = f"""
        import os, signal, sys
        from staddle import Client

        client = Client(sys.argv[1], sys.argv[2])
        {use}
        for _ in range(5):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                print("child", client.info().tenant, flush=True)
                client.close()
                os._exit(0)
            print("status", os.waitpid(child, 0)[1], flush=True)
        print("parent", client.info().tenant, flush=True)
        client.close()
        """
    with nobody() as absent:
        server = listening.address if servers == 1 else f"{listening.address},{absent}"
        assert run(program, listening, server) == ["child default", "status 0"] * 5 + ["parent default"]


def test_a_child_forked_during_a_call_reports_that_it_cannot_work(listening: Running) -> None:
    program = """
        import os, signal, sys
        from staddle import Client, UnsupportedError

        client = Client(sys.argv[1], sys.argv[2])
        with client.upload("www") as upload:
            upload.put("a", b"1")
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                for attempt in (client, Client(sys.argv[1], sys.argv[2])):
                    try:
                        attempt.info()
                    except UnsupportedError as error:
                        print("spawn" in str(error), flush=True)
                try:
                    upload.put("b", b"2")
                except UnsupportedError as error:
                    print("forked" in str(error), flush=True)
                upload.__exit__(ValueError, ValueError(), None)
                client.close()
                os._exit(0)
            print("status", os.waitpid(child, 0)[1], flush=True)
        print("parent", upload.report.backup.number, flush=True)
        """
    assert run(program, listening) == ["True", "True", "True", "status 0", "parent 1"]

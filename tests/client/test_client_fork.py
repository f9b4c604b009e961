"""A process that was forked opens a connection of its own."""

import subprocess
import sys
import textwrap

from memory_service import TOKEN, Running


def test_after_a_fork_parent_and_child_both_go_on(running: Running) -> None:
    program = textwrap.dedent(
        """
        import os, signal, sys
        from staddle import Client

        client = Client(sys.argv[1], sys.argv[2])
        print("parent", client.info().tenant, flush=True)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            print("child", client.info().tenant, flush=True)
            client.close()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print("status", status, flush=True)
        print("parent again", client.info().tenant, flush=True)
        client.close()
        """
    )
    run = subprocess.run(
        [sys.executable, "-c", program, running.address, TOKEN],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.stdout.splitlines() == ["parent default", "child default", "status 0", "parent again default"], run.stderr

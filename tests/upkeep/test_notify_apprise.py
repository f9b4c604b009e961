"""Apprise: the real library, with a receiver on loopback."""

from __future__ import annotations

import pytest
from receivers import misbehaving, receiving
from staddle_server.catalog import Alarm, AlarmKey
from staddle_server.upkeep.notify.apprise import Apprise
from staddle_server.upkeep.notify.attempt import TargetError, Watchdog
from staddle_server.upkeep.notify.notice import BEGAN, Notice
from staddle_server.upkeep.notify.targets import Filter

pytest.importorskip("apprise")

ALARM = Alarm(AlarmKey("clock", "", "", ""), "critical", "The clock jumped.", "Set it right.", 10**18)
SECRET = "do-not-show-me"


def send(url: str, *notices: Notice, timeout_s: float = 60.0) -> None:
    with Watchdog() as watchdog, watchdog.attempt(timeout_s) as attempt:
        Apprise("t", Filter(), url).send(notices, attempt, 1)


def notice(number: int) -> Notice:
    return Notice(f"{number:02x}.began", BEGAN, ALARM, 10**18, None)


def test_a_service_of_apprise_gets_all_messages_in_one() -> None:
    with receiving() as receiver:
        send(f"json://127.0.0.1:{receiver.port}/{SECRET}", notice(1), notice(2))
        got = receiver.next()
        assert receiver.all() == []
    assert got.value["title"] == "Staddle: 2 events: The clock of a server jumped, …"
    assert got.value["message"].count("The clock jumped.\nSince 2001-09-09 01:46 UTC.\nSet it right.") == 2


def test_a_refusal_names_the_service_and_no_secret() -> None:
    with receiving() as receiver:
        receiver.status = 500
        with pytest.raises(
            TargetError, match="Apprise ended with exit code 1: the service JSON did not take"
        ) as caught:
            send(f"json://127.0.0.1:{receiver.port}/{SECRET}", notice(1))
    assert SECRET not in str(caught.value)
    with pytest.raises(TargetError, match="Apprise knows no service with this URL") as caught:
        send(f"nothing://{SECRET}", notice(1))
    assert SECRET not in str(caught.value)


def test_a_service_that_hangs_is_left_in_time() -> None:
    with (
        misbehaving(lambda _, over: over.wait(60)) as port,
        pytest.raises(TargetError, match="no complete answer within 3 s"),
    ):
        send(f"json://127.0.0.1:{port}/{SECRET}", notice(1), timeout_s=3)

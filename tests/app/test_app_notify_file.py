"""The file of notification targets: what it may say, and what is refused by name."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from staddle_server.app.notify_file import targets_of
from staddle_server.app.settings import SettingsError
from staddle_server.catalog import Alarm, AlarmKey
from staddle_server.upkeep.events.kinds import KINDS
from staddle_server.upkeep.notify.apprise import Apprise
from staddle_server.upkeep.notify.command import Command
from staddle_server.upkeep.notify.delivery import AnyTarget
from staddle_server.upkeep.notify.ping import Ping
from staddle_server.upkeep.notify.smtp import Smtp
from staddle_server.upkeep.notify.targets import wants
from staddle_server.upkeep.notify.webhook import Webhook
from tls_given import make_certificates

PAGE = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
SECRET = "do-not-show-me"
HOOK = 'kind = "webhook"\nurl = "https://hooks.example.com/staddle"\n'


def read(data: Path, text: str, environ: dict[str, str] | None = None) -> list[AnyTarget]:
    (data / "notify.toml").write_text(text)
    return targets_of(data, None, environ or {})


def one(data: Path, text: str, environ: dict[str, str] | None = None) -> AnyTarget:
    (target,) = read(data, f'[[target]]\nname = "t"\n{text}', environ)
    return target


def test_without_a_file_there_is_no_target_and_a_named_file_must_exist(tmp_path: Path) -> None:
    assert targets_of(tmp_path, None, {}) == []
    with pytest.raises(SettingsError, match=r"elsewhere\.toml: No such file"):
        targets_of(tmp_path, tmp_path / "elsewhere.toml", {})


@pytest.mark.parametrize(
    ("leads_to", "says"), [("gone.toml", "link to gone.toml"), ("notify.toml", "symbolic")]
)
def test_a_link_that_leads_nowhere_is_no_absent_file(tmp_path: Path, leads_to: str, says: str) -> None:
    (tmp_path / "notify.toml").symlink_to(leads_to)
    with pytest.raises(SettingsError, match=says):
        targets_of(tmp_path, None, {})


def test_the_authority_is_read_as_every_certificate_is(tmp_path: Path) -> None:
    windows = "\ufeff" + (make_certificates(tmp_path / "tls") / "ca.crt").read_text().replace("\n", "\r\n")
    (tmp_path / "ca.pem").write_text(windows)
    target = one(tmp_path, HOOK + 'ca = "ca.pem"')
    assert isinstance(target, Webhook)
    assert target.context is not None
    assert len(target.context.get_ca_certs()) == 1


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        os.mkdir,
        lambda path: path.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ],
)
def test_an_authority_that_is_none_is_refused_at_once(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "ca.pem")
    with pytest.raises(SettingsError, match=r"target t: ca: .*ca\.pem"):
        one(tmp_path, HOOK + 'ca = "ca.pem"')


def test_the_example_of_the_page_is_read(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "webhook.secret").write_text(f"{SECRET}\n")
    example = example.replace("/etc/staddle/webhook.secret", "webhook.secret")
    environ = {"MAIL_PASSWORD": SECRET, "PING_URL": f"https://ping.example.com/{SECRET}"}
    hook, mail, ping, command = read(tmp_path, example, environ)
    assert isinstance(hook, Webhook)
    assert (hook.secret, str(hook.url)) == (SECRET.encode(), "https://hooks.example.com:443/…")
    assert isinstance(mail, Smtp)
    assert (mail.port, mail.security, mail.password) == (587, "starttls", SECRET)
    assert isinstance(ping, Ping)
    assert (ping.url.path, ping.every_s) == (f"/{SECRET}", 300)
    assert ping.url.below("fail").path == f"/{SECRET}/fail"
    assert isinstance(command, Command)
    assert command.words == ["/usr/local/bin/page", "--from", "staddle"]
    assert SECRET not in repr([hook, mail, ping, command])


def test_the_page_has_a_row_for_each_kind_of_event_and_of_target(tmp_path: Path) -> None:
    table = PAGE[PAGE.index("| kind | begins when |") : PAGE.index("An event is over when")]
    assert re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE) == list(KINDS)
    with pytest.raises(SettingsError, match="kind: use ") as caught:
        one(tmp_path, 'kind = "pigeon"')
    kinds = str(caught.value).partition("use ")[2].split(" or ")
    targets = PAGE[PAGE.index("### Targets") :]
    assert all(f"| `{kind}` |" in targets for kind in kinds)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kind = 1", "kind: expected a printable text"),
        ('kind = "webhook"', "target t needs url"),
        ('kind = "webhook"\nurl = "ftp://x/y"', "expected https://HOST/PATH"),
        ('kind = "webhook"\nurl = "https:///y"', "expected https://HOST/PATH"),
        ('kind = "webhook"\nurl = "https://u:p@x/y"', "a user name is not supported"),
        ('kind = "webhook"\nurl = "https://x:99999/y"', "its port"),
        ('kind = "webhook"\nurl = "https://x/ y"', "without spaces"),
        (HOOK + 'sekret = "x"', "webhook has no 'sekret'; the nearest is 'secret'"),
        (HOOK + 'secret = "nowhere"', r"secret: cannot read .*nowhere: No such file"),
        (HOOK + 'secret = "env:NOWHERE"', "the variable NOWHERE is not set"),
        (HOOK + 'secret = "empty"', "empty is empty"),
        (HOOK + 'ca = "empty"', "empty, not a PEM file"),
        (HOOK + 'ca = "nowhere"', "nowhere: No such file"),
        (HOOK + 'kinds = ["fire"]', "unknown kind of event 'fire': there are certificate, clock"),
        (HOOK + 'kinds = "damage"', "kinds: expected a list of texts"),
        (HOOK + 'severity = "low"', "severity: use warning or critical"),
        (HOOK + 'timeout = "1h"', "timeout is '1h': it is too long, use at most 5m"),
        ('kind = "ping"\nurl = "http://x/"\nevery = "1s"', "every is '1s': it is too short"),
        ('kind = "command"\ncommand = "/bin/x"', "command: expected a list of texts"),
        ('kind = "command"\ncommand = ["x"]', "the first an absolute path"),
        ('kind = "smtp"\nhost = "x:25"\nfrom = "a b"', "from: expected an address"),
        ('kind = "smtp"\nhost = "x"\nfrom = "a@b"\nto = "c@d"', "to: expected a list"),
        ('kind = "smtp"\nhost = "x"\nfrom = "a@b"\nto = ["c@d\\nBcc: e@f"]', "to: expected a list of addr"),
        ('kind = "smtp"\nhost = "x"\nfrom = "a@b\\nBcc: e@f"\nto = ["c@d"]', "from: expected a printable"),
        ('kind = "smtp"\nhost = "x"\nfrom = "a@b"\nto = ["c@d"]\nuser = "u"', "user and password belong"),
        ('kind = "smtp"\nhost = "x"\nfrom = "a@b"\nto = ["c@d"]\nport = "25"', "port: expected a whole"),
        ('kind = "smtp"\nhost = "x"\nsecurity = "ssl"', "security: use tls or starttls or none"),
        (HOOK + "[[target]]\nname = 't'\n" + HOOK, "two targets named 't'"),
        (HOOK + "[other]\n", "must consist of tables .*, not 'other'"),
        ("kind = 'webhook\n", "is not TOML"),
        ('kind = "webhook"\nurl = "empty"', "url: .*empty is empty"),
    ],
)
def test_what_is_wrong_is_named_with_the_target(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(SettingsError, match=says) as caught:
        one(tmp_path, text)
    assert "notify.toml" in str(caught.value)


def test_a_url_of_apprise_is_as_the_library_has_it_and_the_extra_is_named_where_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    found = one(tmp_path, 'kind = "apprise"\nurl = "ntfy://topic"')
    assert isinstance(found, Apprise)
    assert found.url == "ntfy://topic"
    secret = one(tmp_path, 'kind = "apprise"\nurl = "env:URL"', {"URL": f"tgram://{SECRET}"})
    assert isinstance(secret, Apprise)
    assert secret.url == f"tgram://{SECRET}"
    assert SECRET not in repr(secret)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"not installed: pip install 'staddle\[server,apprise\]'"):
        one(tmp_path, 'kind = "apprise"\nurl = "ntfy://topic"')


@pytest.mark.parametrize(
    "url", ["HTTPS://Hooks.example.com/x", " https://hooks.example.com/x ", "'https://hooks.example.com/x'"]
)
def test_a_url_is_read_as_it_is_pasted(tmp_path: Path, url: str) -> None:
    target = one(tmp_path, f'kind = "webhook"\nurl = {json.dumps(url)}')
    assert isinstance(target, Webhook)
    assert (target.url.host, target.url.path) == ("hooks.example.com", "/x")


def test_a_secret_that_every_user_can_read_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = tmp_path / "hook.secret"
    secret.write_text(SECRET)
    for mode, warnings in (
        (0o600, []),
        (0o640, []),
        (0o644, [f"every user of this machine can read {secret}: chmod 600 it"]),
    ):
        secret.chmod(mode)
        one(tmp_path, HOOK + 'secret = "hook.secret"')
        assert caplog.messages == warnings
    assert SECRET not in caplog.text


def test_no_error_repeats_a_secret(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"https://user:{SECRET}@x/{SECRET}")
    for url in ("url", f"HTP://x/{SECRET}", f" ftp://x/{SECRET}"):
        with pytest.raises(SettingsError) as caught:
            one(tmp_path, f'kind = "webhook"\nurl = "{url}"')
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("names", [["a"] * 21, ["A"], ["a b"], [""]])
def test_names_are_few_short_and_plain(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(SettingsError):
        read(tmp_path, "".join(f'[[target]]\nname = "{name}"\n{HOOK}' for name in names))


def test_a_filter_passes_what_it_names(tmp_path: Path) -> None:
    def alarm(kind: str, tenant: str, severity: str, subject: str = "") -> Alarm:
        return Alarm(AlarmKey(kind, tenant, "", subject), severity, "", "")

    everything = one(tmp_path, HOOK)
    assert all(wants(everything, alarm(kind, "a", "warning")) for kind in KINDS)
    some = one(tmp_path, HOOK + 'kinds = ["damage", "clock", "target"]\ntenants = ["a"]')
    assert wants(some, alarm("damage", "a", "warning"))
    assert wants(some, alarm("clock", "", "warning")), "what concerns no tenant concerns all"
    assert not wants(some, alarm("damage", "b", "critical"))
    assert not wants(some, alarm("token", "a", "critical"))
    critical = one(tmp_path, HOOK + 'severity = "critical"')
    assert wants(critical, alarm("damage", "a", "critical"))
    assert not wants(critical, alarm("damage", "a", "warning"))
    assert not wants(everything, alarm("target", "", "warning", "t")), "its own failure"
    assert wants(everything, alarm("target", "", "warning", "other"))

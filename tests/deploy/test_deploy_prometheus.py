"""The alerts and the board in server/deploy/prometheus ask for what a real scrape has, and the alerts fire when they should."""

from __future__ import annotations

import datetime
import http.client
import json
import re
import ssl
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import promtool
import pytest
import yaml
from ports import free_port
from prometheus_client.parser import text_string_to_metric_families
from servers import ServerProcess
from staddle_server.app import certificates as certs
from thin import wait_until

TOP = Path(__file__).parents[2]
DEPLOY = TOP / "server" / "deploy" / "prometheus"
PAGE = (TOP / "docs" / "monitoring.md").read_text()
ALERTS = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())
RULES = {rule["alert"]: rule for group in ALERTS["groups"] for rule in group["rules"]}
BOARD = json.loads((DEPLOY / "grafana.json").read_text())
pytestmark = pytest.mark.xdist_group("promtool")
DAY = 24 * 60


class Scrape(NamedTuple):
    text: str
    names: dict[str, set[str]]
    """The labels of each name that a query may use; a metric without samples has none that are known."""


@pytest.fixture(scope="module")
def scrape(tmp_path_factory: pytest.TempPathFactory) -> Scrape:
    """Of a server with TLS and a second place, after a backup and its first upkeep."""
    place = tmp_path_factory.mktemp("scrape")
    tls = place / "tls"
    certs.make(tls, ["localhost"], [], 30, datetime.datetime.now(datetime.UTC))
    port = free_port()
    flags = ("--http", f"127.0.0.1:{port}", "--metrics", "public", "--tls-cert", str(tls / "server.crt"))
    server = ServerProcess(
        place / "d",
        flags=(*flags, "--tls-key", str(tls / "server.key"), "--replicate-to", str(place / "copy")),
    )
    server.start()
    try:
        bin_ = Path(server.command[0]).parent
        environment = {"STADDLE_CONFIG": str(server.config), "PATH": "/usr/bin:/bin", "HOME": str(place)}
        backup = [bin_ / "staddle", "backup", TOP / "protos", "--dataset", "protos"]
        subprocess.run(backup, env=environment, check=True, capture_output=True)
        context = ssl.create_default_context(cafile=str(tls / "ca.crt"))
        context.check_hostname = False
        text = ""

        def is_complete() -> bool:
            """Upkeep first looks after some seconds."""
            nonlocal text
            connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
            connection.close()
            return "{task=" in text and "whole_timestamp_seconds{replica=" in text

        wait_until(is_complete)
    finally:
        server.stop()
    names: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        base = f"{family.name}_total" if family.type == "counter" else family.name
        names.setdefault(base, set())
        for sample in family.samples:
            names.setdefault(sample.name, set()).update(sample.labels)
    return Scrape(text, names)


def queries() -> dict[str, str]:
    found = {name: rule["expr"] for name, rule in RULES.items()}
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    return found


def test_promtool_finds_nothing_wrong_with_a_scrape(scrape: Scrape) -> None:
    assert promtool.run("check", "metrics", text=scrape.text).strip() == ""


@pytest.mark.parametrize("query", queries())
def test_every_query_asks_for_metrics_and_labels_that_a_scrape_has(scrape: Scrape, query: str) -> None:
    expr = queries()[query]
    used = set(re.findall(r"\bstaddle_\w+", expr))
    assert used or query == "StaddleDown"
    assert used <= set(scrape.names), used - set(scrape.names)
    known = {"instance", "job"}.union(*(scrape.names[name] for name in used))
    labels = set(re.findall(r"[{,]\s*(\w+)\s*=", expr))
    for listed in re.findall(r"\b(?:by|on) \(([^)]*)\)", expr):
        labels.update(each.strip() for each in listed.split(","))
    assert labels <= known, labels - known


def test_promtool_reads_every_query(tmp_path: Path) -> None:
    rules = [
        {"record": f"query:{number}", "expr": expr.replace("$__rate_interval", "5m")}
        for number, expr in enumerate(queries().values())
    ]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool.run("check", "rules", path)
    promtool.run("check", "rules", DEPLOY / "alerts.yaml")


def test_the_page_lists_exactly_the_metrics_of_a_scrape(scrape: Scrape) -> None:
    families = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in text_string_to_metric_families(scrape.text)
        if family.name.startswith("staddle_")
    }
    documented = {
        name
        for row in re.findall(r"^\| (`staddle_.*?) \|", PAGE, re.MULTILINE)
        for name in re.findall(r"`(\w+)[{`]", row)
    }
    assert documented == families


# --- when alerts fire: the series that make each fire after a while, and like ones that do not


class Case(NamedTuple):
    """Series by their names, with values in promtool's notation, one for each step; fires after `minutes`."""

    minutes: int
    fires: dict[str, str]
    quiet: dict[str, str]

    @property
    def step(self) -> str:
        """A minute, or an hour for what takes days."""
        return "1h" if self.minutes > DAY / 2 else "1m"


def always(value: float) -> str:
    return f"{value}+0x2000"


NOW = "0+3600x2000"
"""The time of each step of an hour."""
LAST = 'staddle_dataset_last_success_timestamp_seconds{tenant="t",dataset="d",instance="i"}'
LATE = LAST.replace("last_success", "late")
CASES = {
    "StaddleLate": Case(2 * DAY, {LATE: always(DAY * 60)}, {LATE: always(3 * DAY * 60)}),
    "StaddleRunsFail": Case(
        61,
        {'staddle_runs_last_day{tenant="t",outcome="abandoned"}': always(1)},
        {'staddle_runs_last_day{tenant="t",outcome="problems"}': always(1)},
    ),
    "StaddleBackupOld": Case(2 * DAY + 120, {LAST: always(1)}, {LAST: always(1), LATE: always(DAY * 600)}),
    "StaddleNoBackup": Case(DAY + 60, {LAST: always(0)}, {LAST: always(5)}),
    "StaddleDamage": Case(
        1, {'staddle_damaged_packs{tenant="t"}': always(1)}, {'staddle_damaged_packs{tenant="t"}': always(0)}
    ),
    "StaddleDrillFailed": Case(
        1,
        {'staddle_dataset_drill_failed{tenant="t",dataset="d"}': always(1)},
        {'staddle_dataset_proven_timestamp_seconds{tenant="t",dataset="d"}': always(1)},
    ),
    "StaddleUnread": Case(
        60 * DAY + 180,
        {'staddle_oldest_unread_timestamp_seconds{tenant="t"}': always(1)},
        {'staddle_oldest_unread_timestamp_seconds{tenant="t"}': NOW},
    ),
    "StaddleDown": Case(6, {'up{job="staddle"}': always(0)}, {'up{job="staddle"}': always(1)}),
    "StaddleRestoreOnly": Case(
        6, {'staddle_part_up{part="writes"}': always(0)}, {'staddle_part_up{part="integrity"}': always(0)}
    ),
    "StaddleClockInDoubt": Case(
        6, {'staddle_part_up{part="upkeep"}': always(0)}, {'staddle_part_up{part="upkeep"}': always(1)}
    ),
    "StaddleServerDead": Case(
        6, {'staddle_servers{state="dead"}': always(1)}, {'staddle_servers{state="draining"}': always(1)}
    ),
    "StaddleCatalogDown": Case(3, {"staddle_catalog_up": always(0)}, {"staddle_catalog_up": always(1)}),
    "StaddleErrors": Case(
        10,
        {'staddle_calls_total{method="Restore",code="DATA_LOSS"}': "0x5 1x60"},
        {'staddle_calls_total{method="Restore",code="NOT_FOUND"}': "0+1x60"},
    ),
    "StaddleStoreErrors": Case(
        15,
        {'staddle_store_errors_total{operation="put"}': "0+1x60"},
        {'staddle_store_errors_total{operation="put"}': "0x5 1x60"},
    ),
    "StaddleCatalogErrors": Case(
        15,
        {'staddle_catalog_errors_total{operation="write"}': "0+1x60"},
        {'staddle_catalog_errors_total{operation="write"}': "0x5 1x60"},
    ),
    "StaddleRefusing": Case(
        40,
        {'staddle_slot_refusals_total{kind="calls"}': "0+1x60"},
        {'staddle_slot_refusals_total{kind="calls"}': "7x60"},
    ),
    "StaddleCertificateEnds": Case(
        61,
        {"staddle_certificate_expiry_timestamp_seconds": always(13 * 86400)},
        {"staddle_certificate_expiry_timestamp_seconds": always(20 * 86400)},
    ),
    "StaddleDiskFills": Case(
        2 * DAY,
        {"staddle_disk_free_bytes": "100000-300x48", "staddle_disk_reserved_bytes": always(1000)},
        {"staddle_disk_free_bytes": "100000-60x48", "staddle_disk_reserved_bytes": always(1000)},
    ),
    "StaddleTaskFailed": Case(
        121, {'staddle_task_failed{task="gc"}': always(1)}, {'staddle_task_failed{task="gc"}': always(0)}
    ),
    "StaddleCollectionOld": Case(
        3 * DAY + 180,
        {'staddle_task_end_timestamp_seconds{task="gc"}': always(1)},
        {'staddle_task_end_timestamp_seconds{task="scrub"}': always(1)},
    ),
    "StaddleReplicaBehind": Case(
        DAY + 180,
        {
            'staddle_replica_whole_timestamp_seconds{replica="1"}': always(1),
            'staddle_replica_behind_bytes{replica="1"}': always(5),
        },
        {
            'staddle_replica_whole_timestamp_seconds{replica="1"}': always(1),
            'staddle_replica_behind_bytes{replica="1"}': always(0),
            'staddle_replica_behind_records{replica="1"}': always(0),
        },
    ),
    "StaddleDatasetsLeftOut": Case(
        61, {"staddle_datasets_left_out": always(1)}, {"staddle_datasets_left_out": always(0)}
    ),
}


def of_promtool(name: str, case: Case, series: dict[str, str]) -> dict[str, Any]:
    return {
        "interval": case.step,
        "input_series": [{"series": key, "values": values} for key, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)',
                "eval_time": f"{case.minutes}m",
                "exp_samples": [{"value": int(series is case.fires)}],
            }
        ],
    }


@pytest.mark.slow
def test_every_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    assert set(CASES) == set(RULES)
    for step in ("1m", "1h"):
        tests = [
            of_promtool(name, case, series)
            for name, case in CASES.items()
            if case.step == step
            for series in (case.fires, case.quiet)
        ]
        path = tmp_path / f"{step}.yaml"
        rules = str(DEPLOY / "alerts.yaml")
        path.write_text(yaml.safe_dump({"rule_files": [rules], "evaluation_interval": step, "tests": tests}))
        promtool.run("test", "rules", path)


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for name, rule in RULES.items():
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}, name
        assert set(rule["annotations"]) == {"summary", "action"}, name
        for flag in re.findall(r"--[a-z-]+", rule["annotations"]["action"]):
            assert flag in (TOP / "docs" / "operations.md").read_text(), flag


def test_the_panels_of_the_board_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells

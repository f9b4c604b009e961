"""URLs of object stores: what is taken, what is refused by name, and that no secret is repeated."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from staddle_server.base.errors import Fault
from staddle_server.store.backends.object_urls import S3ExtraMissing, open_object_url, parse_object_url


def test_a_url_says_bucket_prefix_endpoints_region_and_how_to_address_the_bucket() -> None:
    place = parse_object_url(
        "s3://backups/site/one?endpoint=http://a:8333&endpoint=https%3A%2F%2Fb%3A443%2F&region=garage"
        "&virtual-hosted=true&ca=/etc/ca.pem"
    )
    assert place.endpoints == ("http://a:8333", "https://b:443")
    assert (place.bucket, place.prefix, place.region, place.virtual_hosted, place.ca) == (
        "backups",
        "site/one",
        "garage",
        True,
        "/etc/ca.pem",
    )
    assert str(place) == "s3://backups/site/one"


@pytest.mark.parametrize("url", ["s3://backups", "s3://backups/", "gs://backups/x", "az://container"])
def test_a_bucket_alone_is_a_store(url: str) -> None:
    assert parse_object_url(url).bucket in {"backups", "container"}


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s3://key:sesame@bucket/prefix", "credentials do not belong"),
        ("s3:///prefix", "expected s3://BUCKET/PREFIX"),
        ("s3://bucket/prefix#part", "expected s3://BUCKET/PREFIX"),
        ("s3://bucket/../sesame", "a prefix is made of"),
        ("s3://bucket/a//sesame", "a prefix is made of"),
        (
            "s3://bucket/a?secret_access_key=sesame",
            "not known; options: ca, endpoint, lock-mode, object-lock, region, virtual-hosted",
        ),
        ("s3://bucket/a?endpoint=http://u:sesame@host", "an endpoint is http://HOST:PORT"),
        ("s3://bucket/a?endpoint=host:8333", "an endpoint is http://HOST:PORT"),
        ("s3://bucket/a?endpoint=http://host/sesame", "an endpoint is http://HOST:PORT"),
        ("s3://bucket/a?region=a&region=b", "has region twice"),
        ("s3://bucket/a?region=a/b", "a region is made of"),
        ("s3://bucket/a?virtual-hosted=yes", "true or false"),
        ("s3://bucket/a?ca=ca.pem", "absolute path"),
        ("gs://bucket/a?endpoint=http://a", "options: none"),
    ],
)
def test_what_is_no_url_of_a_store_is_refused_without_repeating_a_secret(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        parse_object_url(url)
    assert "sesame" not in str(caught.value)


def test_a_server_on_a_directory_does_not_load_the_library() -> None:
    loaded = "import sys, staddle_server.cli.serve; print('obstore' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "staddle_server.store.backends.object_store", raising=False)
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.exceptions", None)
    with pytest.raises(S3ExtraMissing, match=r"pip install 'staddle\[server,s3\]'"):
        open_object_url("s3://bucket", {}, "/tmp")


@pytest.mark.parametrize("url", ["gs://bucket/a", "az://container/a"])
def test_the_stores_of_google_and_azure_are_opened_with_variables_of_their_own(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert open_object_url(url, {}, str(tmp_path)).place == url
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    with pytest.raises(Fault, match="az://container/a cannot be opened"):
        open_object_url("az://container/a", {}, str(tmp_path))


def test_no_file_of_credentials_is_an_error_only_where_one_is_named(tmp_path: Path) -> None:
    open_object_url("s3://bucket", {"HOME": str(tmp_path)}, str(tmp_path))
    with pytest.raises(Fault, match=r"credentials .*/none cannot be used"):
        open_object_url("s3://bucket", {"AWS_SHARED_CREDENTIALS_FILE": f"{tmp_path}/none"}, str(tmp_path))
    (tmp_path / "odd").write_text("aws_secret_access_key = sesame\n")
    with pytest.raises(Fault, match="not in the form") as caught:
        open_object_url("s3://bucket", {"AWS_SHARED_CREDENTIALS_FILE": f"{tmp_path}/odd"}, str(tmp_path))
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: Path(path).symlink_to("/dev/zero")])
def test_files_that_a_store_is_opened_with_are_read_within_bounds(
    tmp_path: Path, make: Callable[[str], object]
) -> None:
    odd = f"{tmp_path}/odd"
    make(odd)
    with pytest.raises(Fault, match=r"credentials .*/odd cannot be used: cannot read .*: it is a"):
        open_object_url("s3://bucket", {"AWS_SHARED_CREDENTIALS_FILE": odd}, str(tmp_path))
    with pytest.raises(Fault, match=r"ca: cannot read .*/odd: it is a"):
        open_object_url(f"s3://bucket?ca={odd}", {}, str(tmp_path))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "holds no certificate"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "is damaged"),
    ],
)
def test_an_authority_of_a_store_that_is_none_is_refused_by_name(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "ca.pem").write_text(text)
    with pytest.raises(Fault, match=rf"ca: .*ca\.pem {why}"):
        open_object_url(f"s3://bucket?ca={tmp_path}/ca.pem", {}, str(tmp_path))

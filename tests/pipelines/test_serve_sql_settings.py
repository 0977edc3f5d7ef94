"""What `serve-sql` refuses before Spark starts."""

from __future__ import annotations

import socket

import pytest

from llm_spark import config as settings
from llm_spark.config import Config
from llm_spark.errors import UsageError
from llm_spark.pipelines.serve_sql import prepared
from tests.integration.sql_servers import free_port

LDAP = "serve.conf.hive.server2.authentication.ldap.url=ldap://127.0.0.1"


def checked(*overrides: str) -> Config:
    return prepared(settings.load(None, [f"serve.port={free_port()}", *overrides]), "/scratch")


def test_on_this_machine_nobody_has_to_say_who_he_is() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        assert checked(f"serve.host={host}").serve.authentication == "none"


@pytest.mark.parametrize("host", ["0.0.0.0", "'::'", "192.0.2.1"])
def test_beyond_this_machine_without_authentication_is_refused_saying_what_it_would_open(host: str) -> None:
    with pytest.raises(UsageError, match=r"would let whoever reaches it read every table: set serve\.authentication"):
        checked(f"serve.host={host}")


def test_beyond_this_machine_with_authentication_is_allowed() -> None:
    assert checked("serve.host=0.0.0.0", "serve.authentication=ldap", LDAP).serve.host == "0.0.0.0"


@pytest.mark.parametrize(
    ("authentication", "needs"),
    [
        ("ldap", "hive.server2.authentication.ldap.url"),
        ("kerberos", "hive.server2.authentication.kerberos.principal, hive.server2.authentication.kerberos.keytab"),
        ("pam", "hive.server2.authentication.pam.services"),
        ("custom", "hive.server2.custom.authentication.class"),
    ],
)
def test_an_authentication_without_what_it_asks_is_refused(authentication: str, needs: str) -> None:
    with pytest.raises(UsageError, match=f"needs {needs}: set it in serve.conf"):
        checked(f"serve.authentication={authentication}")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("serve.port=0", "serve.port is 0: give 1 to 65535"),
        ("serve.authentication=passwords", "choose one of none, ldap, kerberos, pam, custom"),
        ("serve.host=no.such.host.invalid", "no address of this machine"),
    ],
)
def test_settings_that_cannot_be_are_refused(override: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        checked(override)


def test_a_port_that_another_program_has_is_refused_naming_it() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=rf"serve\.port={port}: Address already in use; set another"):
            checked(f"serve.port={port}")


def test_sparks_own_files_go_to_the_scratch_folder_unless_a_place_is_set() -> None:
    assert checked().spark.conf["spark.sql.warehouse.dir"] == "/scratch/spark_warehouse"
    assert checked("spark.conf.spark.sql.warehouse.dir=/mine").spark.conf["spark.sql.warehouse.dir"] == "/mine"

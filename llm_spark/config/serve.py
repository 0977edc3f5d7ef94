"""Settings of the SQL server."""

from __future__ import annotations

from dataclasses import dataclass, field

from llm_spark.config.checks import one_of, require

AUTHENTICATION_NEEDS = {
    "none": (),
    "ldap": ("hive.server2.authentication.ldap.url",),
    "kerberos": ("hive.server2.authentication.kerberos.principal", "hive.server2.authentication.kerberos.keytab"),
    "pam": ("hive.server2.authentication.pam.services",),
    "custom": ("hive.server2.custom.authentication.class",),
}
"""What Spark's Thrift server can ask of who connects, and the settings of Hive that each cannot do without."""


@dataclass(frozen=True)
class ServeConfig:
    """Where `serve-sql` listens, and whom it answers. Whoever it answers may read every table of the warehouse and change none."""

    host: str = "127.0.0.1"
    """Address to listen on. The default is this machine alone: others reach it through a tunnel (`ssh -L`). Any other address needs an
    authentication, and is warned of."""
    port: int = 10000
    """TCP port; the one that Hive's clients expect."""
    authentication: str = "none"
    """none, ldap, kerberos, pam, or custom (a class on Spark's class path). Each but none needs settings of its own in `conf`."""
    conf: dict[str, str] = field(default_factory=dict)
    """Further settings of Hive's server, as they are, such as `hive.server2.authentication.ldap.url`, or `hive.server2.use.SSL`,
    `hive.server2.keystore.path` and `hive.server2.keystore.password`, without which passwords and rows travel readable."""

    def __post_init__(self) -> None:
        require(0 < self.port < 65_536, "serve.port", self.port, "give 1 to 65535")
        one_of("serve.authentication", self.authentication, tuple(AUTHENTICATION_NEEDS))

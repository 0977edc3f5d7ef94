"""`llm-spark serve-sql`: what SQL clients find, and that they can do no more than read."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from llm_spark.schemas import DATA_QUALITY, PREDICTIONS, RUNS, Table
from llm_spark.tables.warehouse import Warehouse
from tests.integration.ldap_server import ldap_server
from tests.integration.sql_servers import BEELINE, Served, ask_beeline, served

FIRST_NIGHT, SECOND_NIGHT = date(2026, 1, 1), date(2026, 1, 2)
AT = datetime(2026, 1, 2, 3, 4, 5)


def write(warehouse: Warehouse, table: Table, *rows: dict) -> None:
    """Append rows, of which the columns that are not given are null."""
    values = [tuple(row.get(name) for name in table.schema.names) for row in rows]
    frame = warehouse.spark.createDataFrame(values, table.schema).coalesce(1)
    warehouse.append(table, frame, f"{table.name}-{rows}")


def prediction(day: date, user: str, item: str) -> dict:
    return {"as_of_date": day, "user_id": user, "rank": 1, "item_id": item, "probability": 0.5, "scored_at": AT}


@pytest.fixture(scope="module")
def warehouse(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    made = Warehouse(spark, str(tmp_path_factory.mktemp("served") / "a 'quoted' warehouse"))
    write(made, PREDICTIONS, prediction(FIRST_NIGHT, "ann", "tea"), prediction(FIRST_NIGHT, "bob", "jam"))
    write(made, RUNS, {"run_id": "r1", "stage": "score", "started_at": AT, "seconds": 1.5})
    return made


@pytest.fixture(scope="module")
def server(warehouse: Warehouse, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(warehouse.root, tmp_path_factory.mktemp("server") / "here") as running:
        yield running


def test_the_line_that_says_it_is_ready_gives_the_address_for_jdbc(server: Served) -> None:
    assert server.ready_line == f"ready: jdbc:hive2://127.0.0.1:{server.port}/default\n"


def test_a_python_client_finds_every_table_and_the_view_by_its_name(server: Served) -> None:
    assert {row[1] for row in server.ask("SHOW TABLES")} >= {"predictions", "predictions_current", "runs"}
    assert server.ask("SELECT run_id, stage, seconds, started_at FROM runs") == [("r1", "score", 1.5, AT)]


def test_clients_that_list_columns_find_them_with_their_types_and_comments(server: Served) -> None:
    with server.cursor() as cursor:
        columns = cursor.get_table_schema("runs", "default")
        assert [name for name, *_ in columns] == RUNS.schema.names
        assert dict(column[:2] for column in columns)["started_at"] == "TIMESTAMP"
    told = {row[0]: row[2] for row in server.ask("DESCRIBE predictions")}
    assert told["rank"] == "1 is the likeliest"


def test_hives_own_client_reads_the_same_rows(server: Served) -> None:
    if not BEELINE.exists():
        pytest.skip("this pyspark has no bin/beeline")
    query = "SELECT user_id, item_id, as_of_date FROM predictions WHERE as_of_date = '2026-01-01' ORDER BY user_id"
    lines = ask_beeline(server.ready_line.split()[1], query)
    assert lines == ["user_id,item_id,as_of_date", "ann,tea,2026-01-01", "bob,jam,2026-01-01"]


def test_a_query_after_a_night_sees_that_night_and_the_tables_that_it_made(
    server: Served, warehouse: Warehouse
) -> None:
    current = "SELECT user_id, item_id FROM predictions_current ORDER BY user_id"
    with server.cursor() as connected_before:
        connected_before.execute(current)
        assert connected_before.fetchall() == [("ann", "tea"), ("bob", "jam")]
        write(warehouse, PREDICTIONS, prediction(SECOND_NIGHT, "ann", "milk"))
        connected_before.execute(current)
        assert connected_before.fetchall() == [("ann", "milk"), ("bob", "jam")]
    write(warehouse, DATA_QUALITY, {"name": "volume", "value": 3.0})
    until = time.monotonic() + 60
    while "data_quality" not in {row[1] for row in server.ask("SHOW TABLES")}:
        assert time.monotonic() < until, server.said()
        time.sleep(0.5)
    assert server.ask("SELECT name, value FROM data_quality") == [("volume", 3.0)]


FORBIDDEN = (
    "INSERT INTO runs SELECT * FROM runs",
    "INSERT OVERWRITE runs SELECT * FROM runs",
    "FROM runs INSERT INTO runs SELECT * INSERT INTO runs SELECT *",
    "WITH all_runs AS (SELECT * FROM runs) INSERT INTO runs SELECT * FROM all_runs",
    "DELETE FROM runs",
    "UPDATE runs SET stage = 'x'",
    "MERGE INTO runs USING (SELECT 'r1' AS run_id) AS new ON runs.run_id = new.run_id WHEN MATCHED THEN DELETE",
    "TRUNCATE TABLE runs",
    "DROP TABLE runs",
    "DROP VIEW predictions_current",
    "ALTER TABLE runs ADD COLUMNS (more int)",
    "ALTER TABLE runs SET TBLPROPERTIES ('delta.appendOnly' = 'true')",
    "OPTIMIZE runs",
    "VACUUM runs RETAIN 0 HOURS",
    "RESTORE TABLE runs TO VERSION AS OF 0",
    "CREATE TABLE mine AS SELECT * FROM runs",
    "CREATE VIEW mine AS SELECT * FROM runs",
    "CREATE TEMPORARY VIEW mine USING text OPTIONS (path '{secret}')",
    "CREATE DATABASE mine",
    "CREATE FUNCTION mine AS 'java.lang.Math'",
    "ADD JAR '{secret}'",
    "CACHE TABLE runs",
    "INSERT OVERWRITE DIRECTORY '{folder}/out' USING csv SELECT * FROM runs",
    "INSERT INTO delta.`{runs}` SELECT * FROM runs",
    "DELETE FROM delta.`{runs}`",
    "SELECT * FROM text.`{secret}`",
    "SELECT * FROM delta.`{runs}`",
    "SELECT (SELECT max(value) FROM text.`{secret}`) AS leaked",
    "WITH leaked AS (SELECT * FROM text.`{secret}`) SELECT * FROM leaked",
    "SELECT TRANSFORM (run_id) USING 'cat {secret}' AS (leaked string) FROM runs",
    "SELECT reflect('java.lang.System', 'getProperty', 'user.home')",
    "SELECT java_method('java.lang.System', 'getProperty', 'user.home')",
    "SELECT try_reflect('java.lang.System', 'getProperty', 'user.home')",
    "EXECUTE IMMEDIATE 'DROP TABLE runs'",
    "BEGIN DROP TABLE runs; END",
)


def test_nobody_changes_a_table_reads_a_file_by_its_path_or_runs_a_program(
    server: Served, warehouse: Warehouse, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret\n")
    places = {"secret": secret, "folder": tmp_path, "runs": warehouse.path(RUNS)}
    before = warehouse.version(RUNS)
    answers = {}
    with server.cursor() as cursor:
        # What a client may set must not open a way either.
        for name, value in (("spark.sql.sources.useV1SourceList", "''"), ("spark.sql.runSQLOnFiles", "true")):
            cursor.execute(f"SET {name}={value}")
        for statement in FORBIDDEN:
            answers[statement] = _answer(cursor, statement.format(**places))
        cursor.execute("SELECT count(*) FROM runs")
        assert cursor.fetchall() == [(1,)]
    # Functions that call Java are not there at all.
    refusals = ("read-only: ", "UNRESOLVED_ROUTINE")
    others = {statement: answer for statement, answer in answers.items() if not any(r in answer for r in refusals)}
    assert others == {}
    assert "the secret" not in str(answers)
    assert warehouse.version(RUNS) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.txt"]


def _answer(cursor: Any, statement: str) -> str:
    try:
        cursor.execute(statement)
        return f"rows: {cursor.fetchall() if cursor.description else []}"
    except Exception as error:
        return str(error)


def test_who_is_refused_reads_why_in_words(server: Served) -> None:
    with pytest.raises(Exception, match=r"read-only: this server answers SELECT, SHOW, .* this statement is Delete"):
        server.ask("DELETE FROM runs")
    with pytest.raises(Exception, match="read-only: tables are read by their names"):
        server.ask("SELECT * FROM text.`/etc/hostname`")


def test_what_analysts_need_is_answered(server: Served) -> None:
    for statement in (
        "DESCRIBE EXTENDED runs",
        "DESCRIBE HISTORY runs",
        "SHOW COLUMNS IN runs",
        "SHOW DATABASES",
        "SHOW FUNCTIONS",
        "SHOW CREATE TABLE predictions_current",
        "EXPLAIN SELECT * FROM runs",
        "SET spark.sql.shuffle.partitions=3",
        "SELECT * FROM runs VERSION AS OF 1",
        "WITH longest AS (SELECT max(seconds) AS seconds FROM runs) SELECT * FROM runs JOIN longest USING (seconds)",
        "SELECT explode(sequence(1, 3))",
        "VALUES (1, 'a')",
    ):
        assert server.ask(statement), statement
    with server.cursor() as cursor:
        cursor.execute("USE default")  # it answers nothing, without a column


def test_a_statement_is_not_filled_in_from_the_servers_environment_nor_may_a_client_have_it_so(server: Served) -> None:
    assert server.ask("SELECT '${env:HOME}', '${system:user.home}'") == [("${env:HOME}", "${system:user.home}")]
    for statement in (
        "SET spark.sql.variable.substitute=true",
        "SET spark.sql.catalog.mine=org.apache.spark.sql.execution.datasources.v2.jdbc.JDBCTableCatalog",
        "SET spark.sql.defaultCatalog=mine",
    ):
        with pytest.raises(Exception, match="read-only: "):
            server.ask(statement)


def test_one_clients_settings_are_not_anothers(server: Served) -> None:
    with server.cursor() as one, server.cursor() as other:
        one.execute("SET spark.sql.shuffle.partitions=7")
        other.execute("SET spark.sql.shuffle.partitions")
        assert other.fetchall()[0][1] != "7"


def test_asked_to_end_it_ends_well_and_leaves_nothing_behind(server: Served) -> None:
    assert server.end() == 0
    assert "Traceback" not in server.said()
    assert [path.name for path in server.folder.iterdir()] == ["stderr.txt"]


@pytest.mark.slow
def test_under_ldap_beyond_this_machine_the_right_password_is_let_in_and_a_wrong_one_is_not(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    with ldap_server({"uid=ann,ou=people,dc=example": "right"}) as ldap_port:
        settings = {
            "host": "0.0.0.0",
            "authentication": "ldap",
            "conf.hive.server2.authentication.ldap.url": f"ldap://127.0.0.1:{ldap_port}",
            "conf.hive.server2.authentication.ldap.baseDN": "'ou=people,dc=example'",
        }
        overrides = [f"serve.{name}={value}" for name, value in settings.items()]
        with served(warehouse.root, tmp_path / "here", *overrides) as server:
            assert server.ask("SELECT run_id FROM runs", "ann", "right") == [("r1",)]
            for user, password in (("ann", "wrong"), ("bob", "right"), ("ann", "")):
                with pytest.raises(Exception, match=r"(?i)sasl|auth|bad status|closed|read 0 bytes"):
                    server.ask("SELECT run_id FROM runs", user, password)
            assert (
                f"0.0.0.0:{server.port} is open beyond this machine: whoever passes ldap reads every row"
                in server.said()
            )
            assert "passwords and rows travel readable" in server.said()
            assert server.end(signal.SIGINT) == 0

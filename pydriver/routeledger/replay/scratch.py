"""A database that is there for one replay: on the private server, made and dropped."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator

import psycopg
from psycopg import conninfo, sql

from routeledger import install
from routeledger._embedded import embedded


@contextlib.contextmanager
def scratch_database() -> Iterator[str]:
    """The DSN of a new database with routeledger in it, dropped afterwards.

    Raises :class:`~routeledger._embedded.EmbeddedError` where no private server is to be had.
    """
    with embedded() as private:
        name = f"routeledger_replay_{secrets.token_hex(4)}"
        with psycopg.connect(private.dsn, autocommit=True) as conn:
            conn.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        try:
            dsn = conninfo.make_conninfo(private.dsn, dbname=name)
            install.install(dsn)
            yield dsn
        finally:
            with psycopg.connect(private.dsn, autocommit=True) as conn:
                drop = sql.SQL("drop database {} with (force)").format(sql.Identifier(name))
                conn.execute(drop)

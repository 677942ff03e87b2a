"""The ledger: one immutable row for every request and every charge, the keys that say who pays,
the log of promotions, and the reports over them. `store.open_ledger(url)` opens it on SQLite or
PostgreSQL, `writer.LedgerWriter` records from asyncio, `report` explains and adds up.
"""

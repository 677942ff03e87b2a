"""Deadline-aware spot: never late, and as cheap as what is known of the zones allows.

`availability` learns from the record of `zones`, `plan` is the cheapest way to finish in time,
`policy` decides tick by tick, and `jobs` does it for the jobs of the queue.
"""

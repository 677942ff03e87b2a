"""The job queue that Ray has not: who starts, who waits and why, who makes room, who tries again.

`admission` decides, from `quota`, `eligibility` and `offpeak`; `store` keeps every job in the
ledger's database; `controller` looks, decides and acts through `runner`, while it holds `lease`.
"""

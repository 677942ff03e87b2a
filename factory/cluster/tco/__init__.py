"""Total cost of ownership: own machines, a cloud, or both, for the load the ledger has seen."""

"""Which version of a model users get, and why: versions on MLflow, a gate, a promotion log.

`lineage.py` says what a version was made of, `gate.py` decides from plain numbers, `succession.py`
reads the line of champions from the log, `mlflow_store.py` is the thin adapter, and `versions.py`
is the `Registry` that moves `@champion` only through the gate.
"""

"""Judging answers: a suite of cases, scorers, a harness that runs and saves, a comparison.

`suite.py` reads and writes the versioned file, `scorers.py` scores one answer, `harness.py` runs a
suite through an answerer (`transformers_answerer.py`, `endpoint_answerer.py`) and keeps the results
(`results.py`), `compare.py` says whether one model is really better than another.
"""

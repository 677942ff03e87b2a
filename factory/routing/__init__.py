"""Routing: which tier a request starts on, when its answer is good enough, and where it goes next.

Decisions are pure functions of plain values that return their reasons:

- `ladder.climbable` (the tiers an endpoint may use now), `ladder.next_step` (answer, climb, retry,
  refuse), `rules.choose` (the first tier), `worth.worth` (leave the cheap attempt out?),
  `encoder.worth` (pay for a neural encoder?);
- `confidence.judge` and `consistency.agree` (is this answer good enough);
- `breaker.allow`, `breaker.failed`, `breaker.succeeded` (leave a failing model alone).

What is learned: `labels.read` and `labels.from_samples` make a table, `learned.fit` a router,
`calibration` its threshold to a target, `report.compare` says what it is worth, `fitted` keeps it.
"""

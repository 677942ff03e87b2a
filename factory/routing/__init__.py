"""Routing: which tier a request starts on, when its answer is good enough, and where it goes next.

Everything here is a pure function of plain values that returns a decision with its reasons:
`ladder.climbable` (the tiers an endpoint may use now), `rules.choose` (the first tier),
`confidence.judge` (is this answer good enough), `ladder.next_step` (answer, climb, retry, refuse).
"""

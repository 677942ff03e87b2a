"""The compute the factory runs on: a local Ray head, jobs on it, and the gateway it serves.

`local` starts and stops the head, `jobs` submits and follows work through Ray's job API,
`serving` brings the whole line up and takes it down again, `placement` says where work runs and
`meter` what the nodes' hours went to. Rooms of their own have `queue` (jobs that wait for their
turn), `spot` (deadlines on nodes that come and go), `clouds` (nodes from several providers),
`idle` (what stops by itself) and `tco` (owning against renting).
"""

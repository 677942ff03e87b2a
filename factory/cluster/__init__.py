"""The compute the factory runs on: a local Ray head, jobs on it, and the gateway it serves.

`local` starts and stops the head, `jobs` submits and follows work through Ray's job API,
`serving` brings the whole line up and takes it down again.
"""

"""Nodes from several providers in one Ray cluster, each of which may fail to give any.

`provider` multiplexes, `stock` notices what is out and for how long to leave it alone, `caps`
tells Ray's autoscaler, and `notice` turns a cloud's word that a node goes into Ray's draining.
"""

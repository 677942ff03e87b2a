"""What an operator watches, in Prometheus' format: traffic as it is settled, and the state of the
moment. `traffic.Traffic` counts, `state.State` is a snapshot, `exposition.render` writes both;
the gateway serves them at `/metrics`.
"""

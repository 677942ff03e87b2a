"""What nobody uses is announced, then stopped; what that saves is in the ledger.

`shutdown` decides about a whole cluster, `leftovers` about sessions and what jobs left behind;
`sleep` tells of engines that fall asleep by themselves.
"""

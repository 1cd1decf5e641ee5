"""`ebdiff doctor`: what would spoil a long run on this machine or cluster, found before it starts.

`facts` is what each node says of itself; `examine` asks and judges them all, with `storage` and `needs`.
"""

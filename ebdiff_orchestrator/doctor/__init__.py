"""`ebdiff doctor`: what would spoil a long run on this machine or cluster, found before it starts.

`facts` is what each node says of itself; `nodes`, `storage` and `needs` judge it; `examine` asks them all; `report`
shows what they found.
"""

"""`ebdiff doctor`: what would spoil a long run on this machine or cluster, found before it starts.

`facts` is what each node says of itself; every other check is a file of its own that judges without touching anything;
`examine` gathers and asks them all.
"""

"""What may leave production, and in which form: rules of columns, masks, and the key they depend on. Pure.

A policy judges all published tables together and says of each column whether it travels as it is, masked, or
not at all. A mask is a function of the key, a domain and a value's text, the same on every day, in the stream
and in a snapshot, and its results are for ever: whoever changes one changes its version, and with it the id
that readers compare.
"""

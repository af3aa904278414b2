"""How tensors are coded: a file a method, with the encoder's and the decoder's direction side by side.

`method` says what every method has, `registry` holds one row for each.
"""

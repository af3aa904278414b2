"""The codec: a checkpoint and its reference <-> streams. Pure: arrays in, bytes out."""

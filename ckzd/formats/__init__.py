"""Training files read into checkpoints: which bytes are tensors and what they are called; knows no compression."""

"""What an archive stores beside its streams, and how it is read back."""

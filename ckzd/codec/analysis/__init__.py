"""What a checkpoint holds, before anything is coded."""

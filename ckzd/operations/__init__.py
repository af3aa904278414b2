"""What ckzd does, one file a verb."""

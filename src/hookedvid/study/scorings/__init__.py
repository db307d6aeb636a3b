"""What a study reads off a run."""

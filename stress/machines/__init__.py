"""Real runs on two machines that this one plays."""

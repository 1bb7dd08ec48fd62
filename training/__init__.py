"""Plan, loop, evaluation, checkpoints and monitoring of a run."""

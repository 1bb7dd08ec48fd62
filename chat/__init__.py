"""Talking to a fine-tuned model: the conversation so far, in a terminal or from a pipe."""

"""Talking to a fine-tuned model: the conversation so far, in a terminal, from a pipe or over HTTP."""

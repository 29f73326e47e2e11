"""Cold-start traces written by another model over an OpenAI-compatible API, filtered, in a file that can be resumed."""

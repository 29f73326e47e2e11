"""One episode as plain data and a state machine: no torch, no cache, no tokenizer, no I/O."""

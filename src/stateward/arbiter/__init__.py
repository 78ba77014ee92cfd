"""The judge: compares what is expected with what was observed, and asks for what must follow."""

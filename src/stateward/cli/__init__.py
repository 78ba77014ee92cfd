"""The command line: starts the servers, and speaks to them for an operator."""

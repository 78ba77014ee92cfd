"""From an admitted request to its settled result: admission, dispatch, completion and recovery."""

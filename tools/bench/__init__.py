"""``make bench``: what Stateward costs, side by side with a bare floor in the same run."""

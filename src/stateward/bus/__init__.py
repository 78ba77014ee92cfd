"""Messages between the control plane and its agents: the ports, and their forms within one process."""

"""A cluster in one process, on a clock of its own: the real control plane and agents on simulated hypervisors."""

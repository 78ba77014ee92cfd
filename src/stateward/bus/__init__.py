"""Messages between the control plane and its agents, in one process or over NATS JetStream."""

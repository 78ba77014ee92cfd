"""As much of Neutron's API as clients of Nova's ask for: the networks, and the ports that servers have; read only."""

from stateward.api.networks.routes import network_routes

__all__ = ["network_routes"]

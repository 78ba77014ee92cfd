"""Stateward's own API, ``/v1``: what Nova's has no words for."""

from stateward.api.native.routes import native_app

__all__ = ["native_app"]

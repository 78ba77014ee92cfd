"""The embedded image service: Glance's API v2, with the images' data in a folder."""

from stateward.api.images.routes import image_routes
from stateward.api.images.service import Images

__all__ = ["Images", "image_routes"]

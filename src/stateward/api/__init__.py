"""The HTTP face: the Nova API, the native API, and the embedded identity and image services."""

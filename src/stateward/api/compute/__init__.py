"""The Compute API: Nova's resources, microversions and faults."""

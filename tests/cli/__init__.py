"""The command ``stateward``."""

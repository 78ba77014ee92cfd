"""The host's worker: runs operations on its hypervisor and reports what it sees; it has no database."""

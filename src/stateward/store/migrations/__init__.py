"""Alembic's migrations of the schema; ``stateward.store.schema`` runs them."""

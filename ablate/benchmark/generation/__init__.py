"""How fast a model generates: measured, set beside the machine's limits, and shown as a table, JSON and a page."""

"""How fast a model generates: measured, compared with the machine's limits, shown as a table, JSON and a page."""

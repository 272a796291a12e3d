"""From runs to a verdict on each arm."""

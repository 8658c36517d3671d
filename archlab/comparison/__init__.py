"""From runs that were written down to a comparison one would defend. Imports no torch."""

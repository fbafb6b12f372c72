"""Quality of the prepared scans: one strip per measure, with the scans that were flagged."""

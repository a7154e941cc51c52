"""What freezing really costs: cases trained in full, shortened, and with a front held or frozen at several moments."""

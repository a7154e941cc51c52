"""Methods x seeds of one experiment, side by side, into one table: the command ``smartfrz benchmark``."""

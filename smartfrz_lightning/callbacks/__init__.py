"""The methods, one callback a file, and what adapts the freezing engine to Lightning's Trainer."""

"""What this package uses of PyTorch and Lightning that is not public: here and nowhere else, each with a test."""

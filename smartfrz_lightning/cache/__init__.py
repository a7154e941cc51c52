"""The front cache: the forward pass of a frozen front is not run again for samples that were seen before."""
